"""Builds of TensorFlow Datasets, read without TensorFlow."""

import io
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.sources import tfds
from mammoclip_jax.errors import UserError

datasets = pytest.importorskip("tensorflow_datasets")

IMAGES = {number: np.arange(number, number + 200 * 7, 7, dtype=np.uint16).reshape(20, 10) for number in range(6)}


class Exams(datasets.core.GeneratorBasedBuilder):
    """Six images of 20 x 10 pixels, four of them for training; two of each patient."""

    VERSION = datasets.core.Version("1.0.0")

    def _info(self):
        f = datasets.features
        return datasets.core.DatasetInfo(
            builder=self,
            citation="Doe 2020",
            features=f.FeaturesDict(
                {
                    "id": f.Text(),
                    "image": f.Image(shape=(None, None, 1)),
                    "patient": f.Text(),
                    "report": f.Text(),
                    "breast": f.ClassLabel(names=["LEFT", "RIGHT"]),
                    "view": f.ClassLabel(names=["CC", "MLO"]),
                    "objects": f.Sequence(
                        {"bbox": f.BBoxFeature(), "label": f.ClassLabel(names=["mass", "calcification"])}
                    ),
                    "age": f.Scalar(np.int32),
                    "raw": f.Tensor(shape=(20, 10, 1), dtype=np.uint16),
                    "findings": f.Sequence({"pathology": f.ClassLabel(names=["BENIGN", "MALIGNANT"])}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(4)), "validation": self._generate_examples(range(4, 6))}

    def _generate_examples(self, numbers):
        for number in numbers:
            png = cv2.imencode(".png", IMAGES[number])[1].tobytes()
            yield (
                number,
                {
                    "id": f"im{number}",
                    "image": io.BytesIO(png),
                    "patient": f"patient{number // 2}",
                    "breast": number % 2,
                    "view": number % 2,
                    "report": "FINDINGS: A mass seen by Dr. Smith." if number % 2 else "",
                    "age": 50,
                    "objects": [{"bbox": datasets.features.BBox(0.1, 0.2, 0.5, 0.6), "label": 1}] * (number % 3),
                    "raw": IMAGES[number][..., None],
                    "findings": [{"pathology": k} for k in range(number % 3)],
                },
            )


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    builder = Exams(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


LABELS = "age,pathology=findings/pathology"


@pytest.mark.parametrize("image", ["image", "raw"])
def test_records_become_rows_and_files(build, tmp_path, image):
    table = checked(tfds.read(build, str(tmp_path / "images"), image=image, laterality="breast", labels=LABELS))
    rows = table.rows.set_index("image")
    assert not table.problems and table.table_rows == 6 and table.citation == "Doe 2020" and not table.public_texts
    assert sorted(rows.index) == [f"im{number}" for number in range(6)]
    for number, pixels in IMAGES.items():
        row = rows.loc[f"im{number}"]
        assert (dicom.read(table.root / row["file"]).stored == pixels).all()
        assert row["patient"] == row["study"] == f"patient{number // 2}" and row["dataset"] == "exams"
        assert (row["laterality"], row["view"]) == (("R", "MLO") if number % 2 else ("L", "CC"))
        assert row["split"] == ("train" if number < 4 else "val")
        np.testing.assert_allclose(
            [item["box"] for item in json.loads(row["boxes"])], [[2, 2, 6, 10]] * (number % 3) or np.zeros(0), atol=1e-5
        )
        assert {item["label"] for item in json.loads(row["boxes"])} == ({"calcification"} if number % 3 else set())
        assert (row["texts"], row["sections"]) == (
            (["A mass seen by Dr. Smith."], ["findings"]) if number % 2 else ([], [])
        )
        pathology = {0: {}, 1: {"pathology": "BENIGN"}, 2: {"pathology": "BENIGN,MALIGNANT"}}[number % 3]
        assert json.loads(row["labels"]) == {"age": 50} | pathology


def test_images_that_are_there_are_not_written_again(build, tmp_path):
    first = tfds.read(build, str(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in files} == set(first.rows["file"]) and len(files) == 6
    next(iter(files)).unlink()
    second = tfds.read(build, str(tmp_path))
    changed = [path for path, time in files.items() if path.stat().st_mtime_ns != time]
    assert len(changed) == 1 and second.rows.equals(first.rows)


def test_the_cache_lies_beside_the_build(build):
    assert tfds.read(build).root == build.parent / "1.0.0.images"


def test_splits_can_be_named_and_are_drawn_where_there_is_one(build, tmp_path):
    rows = tfds.read(build, str(tmp_path), splits="validation=test,train=train", val=1.0).rows
    assert list(rows["split"]) == ["val"] * 4 + ["test"] * 2
    rows = tfds.read(build, str(tmp_path), splits="validation=train", val=0.0, test=1.0).rows
    assert set(rows["split"]) == {"test"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patient": "person"}, "no feature 'person'.*--option=patient="),
        ({"image": "imag"}, "Did you mean 'image'"),
        ({"labels": "cancer"}, "no feature 'cancer'"),
        ({"labels": "x=findings/grade"}, "no feature 'findings/grade'"),
        ({"splits": "fold=train"}, "no split 'fold'"),
        ({"splits": "train=fold"}, "none of train, val, test"),
    ],
)
def test_what_the_build_lacks_is_named(build, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        tfds.read(build, str(tmp_path), **options)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no build of TensorFlow Datasets"):
        tfds.read(tmp_path)


def test_a_feature_that_is_no_image_and_a_patient_in_two_splits(build, tmp_path):
    table = tfds.read(build, str(tmp_path), image="age")
    assert table.rows.empty and {problem.reason for problem in table.problems} == {"not an image"}
    assert table.problems[0].row == "train:0" and len(table.problems) == 6
    with pytest.raises(UserError, match="more than one split"):
        checked(tfds.read(build, str(tmp_path), patient="age"))


def test_no_tensorflow_is_imported(build, tmp_path):
    code = (
        f"import sys; from mammoclip_jax.data.sources import tfds; tfds.read({str(build)!r}, {str(tmp_path)!r}); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
