"""No source, whoever writes its adapter, hands an identity on: the step behind the adapters takes them all out."""

import ast
import csv
import io
import json
import re
from pathlib import Path

import cv2
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data import private, sources
from mammoclip_jax.data.check import check
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.preview import preview_source
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.prepare import prepare, read

DATA = Path(private.__file__).parent
SMALL = dict(height=32, width=24)
# Their identifiers and texts are public: captions made of labels, or reports that their owner de-identified.
PUBLIC = {"cbis_ddsm", "chexpert", "cmmd", "embed", "inbreast", "mias", "mimic_cxr", "nl_breast_screening", "phantom",
          "rsna", "vindr"}
MEANT = "A 2.5 cm mass in the left breast at 10 o'clock, BI-RADS 4."
WRITTEN = ("Ms. Zelenka, MRN88123997, was seen on 2024-01-17 by Dr. Oduya (tel. 555-0199), as in 2019. " + MEANT)
SECRETS = ("zelenka", "88123", "2024-01-17", "01-17", "oduya", "555-0199", "in 2019", "acc5521")


def table(root: Path, name: str, columns: dict, count: int = 4) -> None:
    with open(root / name, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: str(value).replace("#", str(n)) for key, value in columns.items()} for n in range(count))


def report_csv(root: Path) -> dict:
    for n in range(4):
        write(root / f"Zelenka_{n}.dcm", breast(seed=n), PatientName="Zelenka")
    table(root, "reports.csv", {"image": "Zelenka_#.dcm", "patient": "MRN88123997", "study": "ACC5521", "laterality": "L",
                                "view": "CC", "report": WRITTEN, "comment": WRITTEN, "record": "88123997"})
    return {"labels": "comment,record"}


def images_only(root: Path) -> dict:
    for n in range(4):
        write(root / f"Zelenka_{n}.dcm", breast(seed=n), PatientName="Zelenka", PatientID="MRN88123997",
              SOPInstanceUID=f"1.2.{n}")
    return {}


def mammo_clip(root: Path) -> dict:
    (root / "88123997").mkdir()
    for n in range(4):
        cv2.imwrite(str(root / "88123997" / f"5521{n}.png"), breast(seed=n))
    images = str([f"5521{n}.png" for n in range(4)])
    table(root, "clip_pretrain_100.csv", {
        "patient_id": "88123997", "laterality": "L", "image": images, "view": "['CC']", "CC": images, "MLO": "[]",
        "text": str([WRITTEN, WRITTEN + " "]), "findings": WRITTEN, "impressions": "", "fold": 1,
        "text_augment": str([WRITTEN + " Again."])}, count=1)
    return {"fold": 1}


def tfds(root: Path) -> dict:
    datasets = pytest.importorskip("tensorflow_datasets")

    class Planted(datasets.core.GeneratorBasedBuilder):
        VERSION = datasets.core.Version("1.0.0")

        def _info(self):
            f = datasets.features
            return datasets.core.DatasetInfo(builder=self, features=f.FeaturesDict({
                "image": f.Image(shape=(None, None, 1)), "mrn": f.Text(), "report": f.Text(), "view": f.Text(),
                "note": f.Text()}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(4):
                yield n, {"image": io.BytesIO(cv2.imencode(".png", breast(seed=n))[1].tobytes()),
                          "mrn": "MRN88123997", "report": WRITTEN, "view": "Zelenka", "note": WRITTEN}

    builder = Planted(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return {"root": builder.data_path, "labels": "note,mrn", "public_ids": True}


PRIVATE = {function.__name__: function for function in (report_csv, images_only, mammo_clip, tfds)}


def nothing_planted(shown: bytes) -> None:
    found = [secret for secret in SECRETS if re.search(rb"(?<![0-9a-f.])" + secret.encode() + rb"(?![0-9a-f])",
                                                       shown.lower())]
    assert not found, (found, shown[:3000])


def test_every_source_is_public_or_tested_here():
    assert set(PRIVATE) | PUBLIC == set(sources.SOURCES) and not set(PRIVATE) & PUBLIC


@pytest.mark.parametrize("source", PRIVATE)
def test_no_private_source_hands_on_an_identity(tmp_path, source, capfd):
    root = tmp_path / "in"
    root.mkdir()
    options = PRIVATE[source](root)
    root = options.pop("root", root)
    found = read(source, root, options)
    assert not found.public_texts
    counts = prepare(source, root, tmp_path / "out", workers=0, options=options, codec="raw", **SMALL)
    assert counts["images"] == 4
    nothing_planted(json.dumps(check(found, root)).encode())
    preview_source(found, root, Preprocessing(**SMALL), tmp_path / "sheet.html")
    nothing_planted("".join(capfd.readouterr()).replace(str(tmp_path), "").encode())
    for path in (*(tmp_path / "out").iterdir(), tmp_path / "sheet.html"):
        if path.name == "dataset.json":             # the day it was made, and pixels' hashes, are no secrets
            info = json.loads(path.read_text())
            del info["provenance"]["created"]
            nothing_planted(json.dumps(info).encode())
        else:
            nothing_planted(path.read_bytes())
    index = Dataset.open(tmp_path / "out").index
    for row in index.to_dict("records"):
        nothing_planted(json.dumps([list(row["texts"]), row["labels"], row["boxes"], row["view"]]).encode())
        assert all(text.endswith(MEANT) or text.endswith("Again.") for text in row["texts"])


def test_a_careless_adapter_gives_nothing_away(tmp_path):
    write(tmp_path / "Zelenka.dcm", breast(), PatientName="Zelenka")
    rows = frame([{
        "dataset": "careless", "patient": "Zelenka", "study": "ACC5521/88123", "image": "Zelenka", "split": "train",
        "file": "Zelenka.dcm", "texts": [WRITTEN, "Poppins agrees."], "identities": ["Poppins^Mary"],
        "view": "ZELENKA", "vendor": "Zelenka Clinic", "sections": ["Zelenka", "findings"],
        "labels": {"note": WRITTEN, "age": 93, "list": [{"deep": WRITTEN}], "record": 88123997, "birads": 4},
        "boxes": [{"label": "mass", "phrase": WRITTEN, "box": [1, 2, 30, 40]}]}])
    careless = SourceTable(rows, [], "", "", public_ids=False)
    (row,) = private.settled(careless, tmp_path).table.rows.to_dict("records")
    shown = {name: row[name] for name in row if name not in ("patient", "study", "image", "file")}      # those are hashed
    nothing_planted(json.dumps(shown).encode())
    assert row["texts"][1] == "[name] agrees." and row["identities"] == [] and row["view"] == ""
    labels, (box,) = json.loads(row["labels"]), json.loads(row["boxes"])
    assert labels["birads"] == 4 and labels["age"] == 90 and MEANT in labels["list"][0]["deep"]
    assert box["box"] == [1, 2, 30, 40] and box["phrase"].endswith(MEANT)
    public = careless._replace(public_ids=True)
    assert private.settled(public, tmp_path).table.rows.equals(rows)
    assert private.settled(public._replace(private_texts=True), tmp_path).table.rows["texts"][0] == row["texts"]


def test_the_step_has_no_way_around_it():
    """What shows rows takes them from `settled`; no adapter de-identifies on its own account."""
    for path in DATA.rglob("*.py"):
        names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
                 and node.module.startswith("mammoclip_jax.data") for alias in node.names}
        if path.parent.name == "sources":
            assert not names & {"deidentify", "private", "settled"}, path
        elif path.name not in ("private.py", "summary.py"):         # the summary only lists files
            assert not ("SourceTable" in names and "checked" in names), path
