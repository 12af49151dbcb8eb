"""docs/own_data.md, done literally: every command of the page, from a folder of DICOM files and a sheet to predictions.

What stands for the page's placeholders is in `stand_ins`; what makes its commands small is SMALL, which is added to them, and
`small_configs`: the published encoder and text encoder, narrower and shallower. Nothing else is changed.
"""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_opening import published_file, published_state

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import MASK_BITS, Parameters
from mammoclip_jax.data.store.parquet import read_table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_data.md").read_text()
TRAINING = ["--config.train.steps=2", "--config.train.batch_size=2", "--config.train.warmup_steps=1"]
TRAINING += ["--config.train.eval_every=2", "--config.train.checkpoint_every=2", "--config.compilation_cache=cache"]
# The checkpoint of the page is imported at its size; the small encoders start from one of their size, which the page trains too.
SMALL = {
    "prepare": ["--height=64", "--width=48", "--workers=0"],
    "finetune": [*TRAINING, "--config.warm_start.image.weights=runs/texts"],
    "pretrain": TRAINING,
    "--config=configs/detector.py:mass": ["--config.model.features=16"],
    "--config=configs/segmentation.py:mass": ["--config.model.features=16"],
}
SPLITS = ("train", "train", "val", "test")  # of the patients in turn, in a column `split` as the page's table has it


def commands() -> list[list[str]]:
    """The words of each command of the page, in its order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for line in "".join(blocks).replace("\\\n", " ").splitlines()]


def sheet(first: str) -> list[str]:
    """The columns of the page's sheet whose header begins with this column and the next."""
    return re.search(rf"^    ({first}.*)$", PAGE, re.MULTILINE)[1].split(";")


def write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def folder(root: Path, scratch: Path, seed: int) -> None:
    """A folder as on the page: p1/L_CC.dcm, ..., labels.csv, boxes.csv, masks/mass/p1/L_CC.png, ..."""
    generate.generate(scratch, len(SPLITS), Parameters(seed=seed, height=128, width=96, mass_prevalence=1.0))
    images, boxes, patients = [], [], []
    for row in read_table(scratch / "images.parquet").to_dict("records"):
        if row["patient"] not in patients:
            patients.append(row["patient"])
        number, labels = patients.index(row["patient"]), json.loads(row["labels"])
        patient, split = f"p{number + 1}-{seed}", SPLITS[number]
        name = f"{patient}/{row['laterality']}_{row['view']}"
        (root / patient).mkdir(parents=True, exist_ok=True)
        shutil.copy(scratch / row["file"], root / f"{name}.dcm")
        own = {"image": f"{name}.dcm", "patient": patient, "date": f"{14 + number}.03.2019", "split": split}
        # Each part needs each class: of so few patients the true densities do not do.
        own |= {"cancer": int(row["laterality"] == "R"), "mass": labels["mass"], "density": "ABCD"[len(images) % 4]}
        images.append(own | {"laterality": row["laterality"], "view": row["view"]})
        for item in json.loads(row["boxes"]):
            corners = dict(zip(("x0", "y0", "x1", "y1"), item["box"]))
            boxes.append({"image": f"{name}.dcm", "label": item["label"]} | corners)
        drawn = (scratch / row["file"]).with_suffix(".mask.png")  # only of what shows a lesion
        bits = cv2.imread(str(drawn), cv2.IMREAD_UNCHANGED) if drawn.is_file() else np.zeros((128, 96), np.uint8)
        target = root / "masks" / "mass" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), bits & MASK_BITS["mass"])
    write(root / "labels.csv", [*sheet("image;patient"), "split"], images)
    write(root / "boxes.csv", sheet("image;label"), boxes)


def small_configs(folder: Path) -> None:
    """configs/ as it is, but for the encoders of mammoclip_b2.py, from which those of the page have theirs."""
    shutil.copytree(ROOT / "configs", folder)
    (folder / "mammoclip_b2.py").write_text(
        f"""import runpy

def get_config(hardware=""):
    config = runpy.run_path({str(ROOT / "configs" / "mammoclip_b2.py")!r})["get_config"](hardware)
    config.model.image.update(width=0.25, depth=0.3)
    config.model.text.update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return config
"""
    )


def run(words: list[str], cwd: Path) -> str:
    """A command's output; fails the test with it unless its status is 0."""
    assert words[:2] == ["python", "-m"]
    added = [more for word in (words[2].partition(".")[2], words[3]) for more in SMALL.get(word, [])]
    done = subprocess.run(
        [sys.executable, *words[1:], *added],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-4000:]}"
    return done.stdout


def test_the_page_names_files_that_are_there():
    configs = {
        word.partition("=")[2].partition(":")[0] for words in commands() for word in words if "--config=" in word
    }
    assert len(configs) == 4 and all((ROOT / name).is_file() for name in configs)
    for name in ("classifier.py", "detector.py", "segmentation.py"):
        assert callable(runpy.run_path(str(ROOT / "configs" / name))["get_config"])


@pytest.mark.slow
def test_the_page_done_literally(tmp_path):
    folder(tmp_path / "mine", tmp_path / "phantoms", seed=5)
    folder(tmp_path / "others", tmp_path / "other_phantoms", seed=6)
    small_configs(tmp_path / "configs")
    published_file(tmp_path / "b2-model-best-epoch-10.tar", published_state("b2"))
    stand_ins = {"EXAM_FOLDER": "mine/p1-5", "FOLDER": "mine"}

    todo = [
        [re.sub("|".join(stand_ins), lambda match: stand_ins[match[0]], word) for word in each] for each in commands()
    ]
    checked, prepared = todo[:2]
    dry = run(checked, tmp_path)
    run(prepared, tmp_path)
    run([word.replace("=mine", "=others").replace("data/mine", "data/other") for word in prepared], tmp_path)
    # The text model, from which the small encoders start, comes first.
    for words in sorted(todo[2:], key=lambda words: "mammoclip_jax.pretrain" not in words):
        run(words, tmp_path)

    assert "16  images\n" in dry and "4  studies" in dry and "masks of 16 images: mass" in dry and "quarantined" in dry
    for name in ("cancer", "density", "masses", "outlines", "texts"):
        page = (tmp_path / "runs" / name / "report.html").read_text()
        assert str(tmp_path) not in page and "p1-5" not in page
    assert (tmp_path / "scores" / "cancer" / "report.html").is_file() and (
        tmp_path / "data/mine/preview.html"
    ).is_file()
    exams = json.loads((tmp_path / "predictions" / "prediction.json").read_text())["exams"]
    assert len(exams) == 1 and len(exams[0]["views"]) == 4 and "cancer" in exams[0]["scores"]
