"""Chest radiographs by the commands of docs/chest.md: synthetic trees of MIMIC-CXR and CheXpert to the page of a run."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from chest_trees import chexpert_tree, mimic_tree

from mammoclip_jax import command, models, tasks
from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.sources.chest_labels import FIVE, FIVE_X
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.training.optimizer import make_optimizer
from mammoclip_jax.training.step import init_variables

ROOT = Path(__file__).parent.parent
# In place of published sizes and weights: what the commands do is the same.
TINY = """
import runpy


def get_config(variant):
    config = runpy.run_path({path!r})["get_config"](variant)
    config.data.update(tokenizer="", text_length=32)
    config.model.image = dict(name="vit", variant="tiny", width=32, depth=2, heads=2)
    config.model.text.update(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, average_layers=(1, -1)
    )
    config.model.dim = 16
    config.warm_start = {{}}
    config.train.update(steps=2, warmup_steps=1, batch_size=4)
    config.train.micro_batches.image = 2
    for options in config.evaluate.evaluators.values():
        options.resamples = 10
    config.evaluate.folders = ("chexpert",)  # at the end of the training; the command evaluate takes both
    return config
"""


# Of each variant the parameters that its tower of images and its projections have; MedCLIP's are 24,556,608 and 27,912,570.
SIZES = {
    "regions": dict(image_encoder=85_799_424, heads=393_728, text_projection=768 * 512),
    "vit": dict(image_encoder=85_799_424, image_projection=768 * 512, text_projection=768 * 512),
    "resnet50": dict(image_encoder=24_556_608 - 2048 * 512, image_projection=2048 * 512, text_projection=768 * 512),
    "swin": dict(image_encoder=27_912_570 - 768 * 512, image_projection=768 * 512, text_projection=768 * 512),
}


@pytest.mark.parametrize("variant", SIZES)
def test_the_variants_have_the_published_sizes(variant):
    config = runpy.run_path(str(ROOT / "configs" / "region_medclip_cxr.py"))["get_config"](variant)
    tasks.check(config)
    model = models.build(config.model, 28_996)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (224, 224, 3), 77)["params"])
    make_optimizer(config.train, shapes)
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert found == SIZES[variant] | {"text_encoder": 107_719_680, "logit_scale": 1}


def commands():
    """Each command of the first block of the page, as words."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "chest.md").read_text(), re.DOTALL)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which all commands ran, and what the last printed."""
    place = tmp_path_factory.mktemp("chest")
    path = ROOT / "configs" / "region_medclip_cxr.py"
    (place / path.name).write_text(TINY.format(path=str(path)))
    roots = {"MIMIC": mimic_tree(place / "mimic", patients=50), "CHEXPERT": chexpert_tree(place / "cx", patients=40)}
    placed = {"=MIMIC": f"={roots['MIMIC']}", "=CHEXPERT": f"={roots['CHEXPERT']}", "=configs/": f"={place}/"}
    for python, dash, module, *words in commands():
        words = [
            word.replace("five_x=200", "five_x=2").replace("=224", "=64") for word in words if "warm_start" not in word
        ]
        for old, new in placed.items():
            words = [word.replace(old, new) for word in words]
        if module.endswith("prepare"):
            prepared(place, words)
            continue
        ran = subprocess.run(
            [sys.executable, dash, module, *words],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert ran.returncode == 0, (words, ran.stdout[-2000:], ran.stderr[-3000:])
    return place, ran.stdout


def prepared(place, words):
    """What the command `prepare` does with these words, in this process: a new one takes seconds to begin."""
    flags = [word.removeprefix("--").split("=", 1) for word in words]
    values = {name: value for name, value in flags if name != "option"}
    sizes = {name: int(values.pop(name)) for name in ("height", "width")}
    options = command.parse_options([value for name, value in flags if name == "option"])
    prepare(**values | {"out": place / values["out"]}, **sizes, options=options, workers=0)


@pytest.mark.slow
def test_every_line_of_the_tables_is_accounted_for(done):
    place, _ = done
    for name, images, lateral in (("mimic_cxr", 50, 50), ("chexpert", 85, 40)):
        dataset = Dataset.open(place / "data" / name)
        counts, left_out = dataset.info["counts"], pd.read_csv(place / "data" / name / "quarantine.csv")
        assert counts["images_in"] == images + lateral == counts["images"] + counts["quarantined"]
        assert len(dataset.index) == images and len(left_out) == lateral == counts["left_out"]
        assert left_out["reason"].str.startswith("left out, no frontal view").all()
        index = dataset.index
        assert (index.groupby("patient")["split"].nunique() == 1).all() and set(index["laterality"]) == {""}
        assert set(index["split"]) == {"train", "val", "test"} and set(index["view"]) <= {"PA", "AP"}
        five = index["labels"].map(lambda labels: json.loads(labels).get(FIVE_X)).dropna()
        assert sorted(five) == sorted(FIVE * 2) and set(index.loc[five.index, "split"]) == {"test"}
        texts = index["texts"].map(len)
        assert (texts == 2).all() if name == "mimic_cxr" else (texts == 0).all()


@pytest.mark.slow
def test_a_radiograph_stands_whole_in_the_middle_of_the_canvas(done):
    dataset = Dataset.open(done[0] / "data" / "mimic_cxr")
    image = dataset.read(0)
    width = round(64 * 60 / 72)
    side = (64 - width) // 2
    assert image.shape == (64, 64)
    assert np.flatnonzero(image.any(axis=0)).tolist() == list(range(side, side + width))


@pytest.mark.slow
def test_the_page_has_the_figures_with_chance_and_intervals(done):
    place, printed = done
    page = Path(re.search(r"report: (.*)", printed)[1])
    results = place / "runs" / "cxr_vit" / "evaluation" / "results"
    assert (place / page).is_file() and "class_retrieval" in printed
    metrics = pd.read_csv(results / "metrics.csv").set_index(["result", "metric"])
    for name in ("chexpert", "mimic_cxr"):
        for k in (1, 2, 5, 10):
            assert 0 <= metrics.loc[(f"{name}/class_retrieval", f"five_x/precision@{k}"), "value"] <= 1
        five = metrics.loc[(f"{name}/five_x", "five_x/accuracy_image")]
        assert five["n"] == 10 and five["low"] <= five["value"] <= five["high"]
        assert metrics.loc[(f"{name}/five_x", "five_x/majority_image"), "value"] == pytest.approx(0.2)
        assert metrics.loc[(f"{name}/five", "five/macro_auroc_image"), "n"] > 10
    assert ("mimic_cxr/retrieval", "image_to_text/recall@1") in metrics.index
