"""No source, whoever writes its adapter, hands an identity on: the step behind the adapters takes them all out."""

import ast
import csv
import io
import json
import re
from pathlib import Path

import cv2
import pydicom
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data import private, sources, summary
from mammoclip_jax.data.check import check
from mammoclip_jax.data.from_source import prepare, read
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.preview import preview_source
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text.recognise import Recogniser
from mammoclip_jax.errors import UserError

DATA = Path(private.__file__).parent
SMALL = dict(height=32, width=24)
# Their identifiers and texts are public: captions made of labels, or reports that their owner de-identified.
PUBLIC = {
    "cbis_ddsm",
    "chexpert",
    "cmmd",
    "embed",
    "inbreast",
    "mias",
    "mimic_cxr",
    "nl_breast_screening",
    "phantom",
    "rsna",
    "vindr",
}
MEANT = "A 2.5 cm mass in the left breast at 10 o'clock, BI-RADS 4."
WRITTEN = "Ms. Zelenka, MRN88123997, was seen on 2024-01-17 by Dr. Oduya (tel. 555-0199), as in 2019. " + MEANT
SECRETS = ("zelenka", "88123", "2024-01-17", "01-17", "oduya", "555-0199", "in 2019", "acc5521")


def table(root: Path, name: str, columns: dict, count: int = 4) -> None:
    with open(root / name, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: str(value).replace("#", str(n)) for key, value in columns.items()} for n in range(count))


def report_csv(root: Path) -> dict:
    for n in range(4):
        write(root / f"Zelenka_{n}.dcm", breast(seed=n), PatientName="Zelenka")
    table(
        root,
        "reports.csv",
        {
            "image": "Zelenka_#.dcm",
            "patient": "MRN88123997",
            "study": "ACC5521",
            "laterality": "L",
            "view": "CC",
            "report": WRITTEN,
            "comment": WRITTEN,
            "record": "88123997",
        },
    )
    return {"labels": "comment,record"}


def images_only(root: Path) -> dict:
    for n in range(4):
        write(
            root / f"Zelenka_{n}.dcm",
            breast(seed=n),
            PatientName="Zelenka",
            PatientID="MRN88123997",
            SOPInstanceUID=f"1.2.{n}",
        )
    return {}


def mammo_clip(root: Path) -> dict:
    (root / "88123997").mkdir()
    for n in range(4):
        cv2.imwrite(str(root / "88123997" / f"5521{n}.png"), breast(seed=n))
    images = str([f"5521{n}.png" for n in range(4)])
    table(
        root,
        "clip_pretrain_100.csv",
        {
            "patient_id": "88123997",
            "laterality": "L",
            "image": images,
            "view": "['CC']",
            "CC": images,
            "MLO": "[]",
            "text": str([WRITTEN, WRITTEN + " "]),
            "findings": WRITTEN,
            "impressions": "",
            "fold": 1,
            "text_augment": str([WRITTEN + " Again."]),
        },
        count=1,
    )
    return {"fold": 1}


def tfds(root: Path) -> dict:
    datasets = pytest.importorskip("tensorflow_datasets")

    class Planted(datasets.core.GeneratorBasedBuilder):
        VERSION = datasets.core.Version("1.0.0")

        def _info(self):
            f = datasets.features
            return datasets.core.DatasetInfo(
                builder=self,
                features=f.FeaturesDict(
                    {
                        "image": f.Image(shape=(None, None, 1)),
                        "mrn": f.Text(),
                        "report": f.Text(),
                        "view": f.Text(),
                        "note": f.Text(),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(4):
                yield (
                    n,
                    {
                        "image": io.BytesIO(cv2.imencode(".png", breast(seed=n))[1].tobytes()),
                        "mrn": "MRN88123997",
                        "report": WRITTEN,
                        "view": "Zelenka",
                        "note": WRITTEN,
                    },
                )

    builder = Planted(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return {"root": builder.data_path, "labels": "note,mrn", "public_ids": True}


PRIVATE = {function.__name__: function for function in (report_csv, images_only, mammo_clip, tfds)}


def nothing_planted(shown: bytes) -> None:
    found = [
        secret
        for secret in SECRETS
        if re.search(rb"(?<![0-9a-f.])" + secret.encode() + rb"(?![0-9a-f])", shown.lower())
    ]
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
        if path.name == "dataset.json":  # the day it was made, and pixels' hashes, are no secrets
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
    rows = frame(
        [
            {
                "dataset": "careless",
                "patient": "Zelenka",
                "study": "ACC5521/88123",
                "image": "Zelenka",
                "split": "train",
                "file": "Zelenka.dcm",
                "texts": [WRITTEN, "Poppins agrees."],
                "identities": ["Poppins^Mary"],
                "view": "ZELENKA",
                "vendor": "Zelenka Clinic",
                "sections": ["Zelenka", "findings"],
                "labels": {"note": WRITTEN, "age": 93, "list": [{"deep": WRITTEN}], "record": 88123997, "birads": 4},
                "boxes": [{"label": "mass", "phrase": WRITTEN, "box": [1, 2, 30, 40]}],
            }
        ]
    )
    careless = SourceTable(rows, [], "", "", public_ids=False)
    (row,) = private.settled(careless, tmp_path).table.rows.to_dict("records")
    shown = {name: row[name] for name in row if name not in ("patient", "study", "image", "file")}  # hashed
    nothing_planted(json.dumps(shown).encode())
    assert row["texts"][1] == "[name] agrees." and row["identities"] == [] and row["view"] == ""
    labels, (box,) = json.loads(row["labels"]), json.loads(row["boxes"])
    assert labels["birads"] == 4 and labels["age"] == 90 and MEANT in labels["list"][0]["deep"]
    assert box["box"] == [1, 2, 30, 40] and box["phrase"].endswith(MEANT)
    public = careless._replace(public_ids=True)
    assert private.settled(public, tmp_path).table.rows.equals(rows)
    assert private.settled(public._replace(private_texts=True), tmp_path).table.rows["texts"][0] == row["texts"]


REPORT = (
    "Zelenka, Quorthon: QUORTHON M. ZELENKA, q. zelenka and Ms. Zelenka's scans from Wexford, seen with "
    "Oduya, Paul; PO/ab. Ulla Born. Call Tkachenko at Wexford General. " + MEANT
)


def exam(root: Path, count: int = 3) -> Path:
    """One exam whose headers hold its people: each image another one; one at depth; the last file is damaged."""
    request = pydicom.Dataset()
    request.RequestingPhysician, request.NamesOfIntendedRecipientsOfResults = "Tkachenko^Olena", ["Someone^Else"]
    tags = [
        dict(PatientName="Zelenka^Quorthon^M", OtherPatientNames=["Ulla^Born", "Q^Z"]),
        dict(OperatorsName="ODUYA^PAUL", InstitutionName="Wexford General"),
        dict(RequestAttributesSequence=pydicom.Sequence([request])),
    ]
    for n, more in enumerate(tags[:count]):
        write(root / f"{n}.dcm", breast(seed=n), SOPInstanceUID=f"1.2.{n}", **more)
    (root / "cut.dcm").write_bytes((root / "0.dcm").read_bytes()[:200])
    table(
        root,
        "reports.csv",
        {"image": "#.dcm", "patient": "p", "study": "s", "laterality": "L", "view": "CC", "report": REPORT},
        count,
    )
    with open(root / "reports.csv", "a") as file:
        file.write(f'cut.dcm,p,s,L,CC,"{REPORT}"\n')
    return root


NAMED = re.compile("zelenka|quorthon|oduya|paul|tkachenko|wexford|ulla|born|po/", re.IGNORECASE)


def test_header_identities_of_all_images_of_the_exam_go(tmp_path):
    root, out = exam(tmp_path), tmp_path / "out"
    counts = prepare("report_csv", root, out, workers=0, shards=2, max_quarantined=0.5, **SMALL)
    assert counts["images"] == 3 and counts["quarantined"] == 1
    dataset = Dataset.open(out)
    for (text,) in dataset.index["texts"]:
        assert not NAMED.search(text) and text.endswith(MEANT), text
    ran = {"texts": "private", "rules": True, "tables": True, "headers": True, "header_files": 3, "recogniser": ""}
    assert dataset.info["deidentification"] == counts["deidentification"] == ran
    assert "headers of 3 DICOM files, NO recogniser" in summary.prepared(out, counts, 1.0)
    for path in [*out.iterdir(), *(tmp_path / "out.private").iterdir()]:
        assert not re.search(rb"zelenka|quorthon|oduya|tkachenko|wexford", path.read_bytes().lower()), path
    again = prepare("report_csv", root, out, workers=0, shards=2, max_quarantined=0.5, **SMALL)
    assert again["up_to_date"] and again["deidentification"] == ran


def test_without_headers_only_rules_and_tables_run(tmp_path):
    """Turning them on again changes texts, and makes no image anew."""
    root, out = exam(tmp_path), tmp_path / "out"
    options = dict(workers=0, shards=1, max_quarantined=0.5, **SMALL)
    counts = prepare("report_csv", root, out, header_identities=False, **options)
    assert counts["deidentification"]["headers"] is False and "NOT headers" in summary.prepared(out, counts, 1.0)
    assert all(NAMED.search(text) for (text,) in Dataset.open(out).index["texts"])
    counts = prepare("report_csv", root, out, **options)
    assert not counts["up_to_date"] and (counts["made"], counts["reused"]) == (0, 3)
    assert not any(NAMED.search(text) for (text,) in Dataset.open(out).index["texts"])
    assert prepare("report_csv", root, tmp_path / "clean", **options | dict(key=f"{out}.private/key"))["made"] == 3
    for name in ("index.parquet", "images-00000-of-00001.array_record", "quarantine.csv", "tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()


def test_a_recogniser_runs_after_the_rules_and_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(
        private.recognise,
        "load",
        lambda folder: Recogniser(lambda text: text.replace("mass", "[name]"), f"Model {len(folder)}"),
    )
    root, out = exam(tmp_path), tmp_path / "out"
    counts = prepare("report_csv", root, out, workers=0, max_quarantined=0.5, recogniser="abc", **SMALL)
    assert counts["deidentification"]["recogniser"] == "Model 3" and "Model 3" in summary.prepared(out, counts, 1.0)
    assert all("cm [name] in" in text for (text,) in Dataset.open(out).index["texts"])
    found = read("report_csv", root)
    with pytest.raises(UserError, match="leave --recogniser out"):
        private.settled(found._replace(public_ids=True), root, recogniser="abc")


def test_the_step_has_no_way_around_it():
    """What shows rows takes them from `settled`; no adapter de-identifies on its own account."""
    for path in DATA.rglob("*.py"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mammoclip_jax.data")
            for alias in node.names
        }
        if path.parent.name == "sources":
            assert not names & {"deidentify", "private", "settled"}, path
        elif path.name not in ("private.py", "summary.py"):  # the summary only lists files
            assert not ("SourceTable" in names and "checked" in names), path
