"""A segmentation that is right, beside what is cheaper; channels and images of which nothing is known; no truth at all."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import masks as store
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.segmentation import segmentation
from mammoclip_jax.evaluation.page import report

SIZE, COUNT = (48, 32), 32
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


class Exams:
    """Half-round breasts, in every second a lesion that is as bright as the tissue elsewhere in the image."""

    def __init__(self, folder, stored=True):
        self.path, self.info = folder, {"fingerprint": "f", "preprocessing": {"height": SIZE[0], "width": SIZE[1]}}
        rng = np.random.default_rng(0)
        self.index = pd.DataFrame(
            {
                "image": [f"i{i}" for i in range(COUNT)],
                "patient": [f"p{i // 2}" for i in range(COUNT)],
                "laterality": "L",
                "view": "CC",
                "real": False,
                "split": ["train" if i < COUNT // 4 else "test" for i in range(COUNT)],
            }
        )
        self.masks, self.images = [], []
        for i in range(COUNT):
            breast = ((ROWS - 24) / 20) ** 2 + (COLUMNS / 24) ** 2 < 1
            lesion = (ROWS - 16 - i % 16) ** 2 + (COLUMNS - 8) ** 2 < 9
            image = breast * rng.integers(60, 90, SIZE)
            image[lesion] = 130
            image[24:30, 10:16] = 130  # tissue
            self.images.append(image.astype(np.uint8))
            self.masks.append({"breast": breast, "mass": lesion if i % 2 else np.zeros(SIZE, bool)})
        if stored:
            known = [masks if i % 4 < 2 else {"breast": masks["breast"]} for i, masks in enumerate(self.masks)]
            entries = (store.entry(i, ("mass", "breast"), masks) for i, masks in enumerate(known))
            store.write(folder, "annotated", ("mass", "breast"), entries, "f", {})

    def __len__(self):
        return COUNT

    def read(self, row):
        return self.images[row]


class Right:
    """Knows the images by heart; misses the top row of a lesion."""

    kind, labels = "segmenter", ("breast", "mass", "pectoral_muscle")
    config, step, provenance, preprocessing = SimpleNamespace(name="right"), 0, {}, {}

    def __init__(self, exams):
        self.exams = exams

    def segment(self, images, threshold):
        assert threshold == 0.5
        out = []
        for image in images:
            place = next(i for i, other in enumerate(self.exams.images) if np.array_equal(image, other))
            breast, mass = (self.exams.masks[place][label] for label in self.labels[:2])
            out.append(np.stack([breast, mass & np.roll(mass, 1, 0), np.zeros(SIZE, bool)], -1))
        return np.array(out)


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    return Exams(tmp_path_factory.mktemp("exams"))


def test_each_label_beside_what_is_cheaper(exams, tmp_path):
    result = segmentation(Right(exams), exams, gallery=4, resamples=200)
    value = {name: entry["value"] for name, entry in result.metrics.items()}
    test = range(COUNT // 4, COUNT)
    shown = [i for i in test if i % 4 == 1]
    assert result.metrics["mass/dice"]["n"] == len(shown) and value["breast/dice"] == 1
    lesion = exams.masks[shown[0]]["mass"]
    both, true = (lesion & np.roll(lesion, 1, 0)).sum(), lesion.sum()
    assert value["mass/dice"] == pytest.approx(2 * both / (both + true))
    assert value["mass/iou"] == pytest.approx(both / true) and value["mass/clean"] == 1
    low, high = (result.metrics["mass/dice"][end] for end in ("low", "high"))
    assert low is None or low <= value["mass/dice"] <= high
    # Bright tissue is as bright as a lesion; the breast's is found by its grey values and as a component.
    assert 0.1 < value["mass/dice_brightness"] < 0.9 and value["mass/clean_brightness"] == 0
    assert value["mass/dice_over_brightness"] == pytest.approx(value["mass/dice"] - value["mass/dice_brightness"])
    assert min(value[f"breast/dice_{name}"] for name in ("brightness", "component", "place")) > 0.9
    assert "mass/dice_component" not in value and not any("pectoral" in name for name in value)
    counts = result.tables["images"].set_index("label")
    assert counts.loc["mass", ["images", "with", "unknown"]].tolist() == [12, 6, 12]
    assert counts.loc["breast", ["images", "with", "unknown"]].tolist() == [24, 24, 0]
    assert len(result.tables["pictures"]) == 4 and "breast 1.00" in result.tables["pictures"]["note"][0]
    assert (result.tables["pictures"]["note"].str.contains("mass")).sum() >= 2
    sheet = cv2.imdecode(np.frombuffer(result.figures["sheet_of_masks"], np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape[1] > 4 * 320
    page = report.write(
        tmp_path, [result._replace(name="exams/segmentation")], model=Right(exams), datasets={}, resamples=0
    )
    assert "Dice: breast 1.00" in page.read_text() and "sheet of masks" in page.read_text()


def test_a_threshold_is_not_fitted_to_what_is_scored(exams):
    result = segmentation(Right(exams), exams, split="all", gallery=0, resamples=0, labels=("mass",))
    assert result.metrics["mass/dice"]["n"] == 8
    bare = segmentation(Right(exams), exams, baselines=False, gallery=0, resamples=0, labels=("mass",))
    assert set(bare.metrics) == {f"mass/{name}" for name in ("dice", "iou", "dice_pooled", "clean")}
    with pytest.raises(UserError, match="Did you mean 'mass'"):
        segmentation(Right(exams), exams, labels=("mas",))


def test_without_true_masks_there_are_pictures_and_no_figure_of_merit(tmp_path):
    films = Exams(tmp_path, stored=False)
    result = segmentation(Right(films), films, gallery=3, resamples=0)
    assert list(result.metrics) == ["breast/agreement_component"]
    assert result.metrics["breast/agreement_component"]["value"] > 0.9
    assert "no figure says how good" in result.protocol
    assert set(result.tables["pictures"]["note"]) == {"no true mask to compare with"} and len(result.figures) == 4
