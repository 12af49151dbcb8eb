"""Which regions are scored, and what is known of each."""

import json

import numpy as np
import pytest
from region_fakes import CONCEPTS, RegionDataset, RegionModel, regions_of

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets
from mammoclip_jax.evaluation.metrics.regions import boxes_mask
from mammoclip_jax.inference.prompts import NORMAL, texts_of

LABELS = ("mass", "calcification")


@pytest.fixture(scope="module")
def dataset():
    return RegionDataset()


def test_boxes_of_one_label_are_taken_and_those_of_several_counted(dataset):
    found, several = region_sets.boxed(dataset.index, range(len(dataset)), LABELS)
    assert several == 0 and found["label"].value_counts().to_dict() == {"mass": 16, "calcification": 16}
    index = dataset.index.copy()
    index.at[0, "boxes_canvas"] = json.dumps([{"labels": ["Mass", "calcification"], "box": [1, 2, 3, 4]}])
    found, several = region_sets.boxed(index, range(3), LABELS)
    assert several == 1 and found["position"].tolist() == [1, 2]
    assert region_sets.boxed(index, range(1), ("mass",))[0][region_sets.BOX].to_numpy().tolist() == [[1, 2, 3, 4]]


def test_normal_tissue_lies_on_the_breast_over_no_box(dataset):
    sizes = np.array([[8.0, 8.0], [6.0, 6.0]])
    found = region_sets.normal(dataset, np.arange(len(dataset)), LABELS, sizes, seed=0)
    assert len(found) > 40 and found["position"].is_unique and set(found["label"]) == {NORMAL}
    drawn = set()
    for row in found.itertuples():
        box, image = np.array([row.left, row.top, row.right, row.bottom]), dataset.images[row.position]
        taken = [item["box"] for item in json.loads(dataset.index["boxes_canvas"][row.position])]
        assert not any((iou(np.array(other, float), box) > 0) for other in taken)
        pixels = boxes_mask(box[None], image.shape)
        assert breast_mask(image)[pixels].mean() >= region_sets.TISSUE
        drawn.add(row.right - row.left)
    assert drawn == {8.0, 6.0}
    again = region_sets.normal(dataset, np.arange(len(dataset))[::-1], LABELS, sizes, seed=0)
    assert again.sort_values("position").reset_index(drop=True).equals(found)  # whatever else is asked for
    other = region_sets.normal(dataset, np.arange(len(dataset)), LABELS, sizes, seed=1)
    assert not other[["left", "top"]].equals(found[["left", "top"]])


def test_an_image_of_which_something_is_unknown_has_no_normal_tissue(dataset):
    other = RegionDataset(1)
    other.index.at[0, "labels"] = json.dumps({"mass": 1})  # calcifications: not known
    other.index.at[1, "labels"] = json.dumps({"mass": 1, "calcification": 1})  # but nobody says where
    found = region_sets.normal(other, np.arange(4), LABELS, np.full((1, 2), 4.0), seed=0)
    assert found["position"].tolist() == [2, 3]


def test_vectors_are_each_regions_own_however_many_an_image_has(dataset):
    """40 of one image, more than are computed at a time; images in any order."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (45, 2)).astype(float)
    table = regions_of(*np.hstack([corners, corners + rng.integers(2, 9, (45, 2))])).assign(
        position=[5] * 40 + [2, 0, 2, 7, 0]
    )
    table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    model = RegionModel()
    found = region_sets.vectors(model, dataset, table, "crops")
    assert {shape[1] for shape in model.shapes} == {region_sets.PLACES}
    for i, row in enumerate(table.itertuples()):
        box = np.array([[[row.left, row.top, row.right, row.bottom]]])
        np.testing.assert_array_equal(
            found[i], RegionModel().embed_crops(dataset.images[row.position][None], box)[0, 0]
        )
    with pytest.raises(UserError, match="no kind of vectors of regions 'crop'. Did you mean 'crops'"):
        region_sets.vectors(model, dataset, table, "crop")


def test_size_and_brightness_are_those_of_the_pixels_touched(dataset):
    position = int(np.flatnonzero(dataset.index["boxes_canvas"].str.contains("calc"))[0])
    x0, y0, x1, y1 = json.loads(dataset.index["boxes_canvas"][position])[0]["box"]
    table = regions_of((x0, y0, x1, y1), (x0 + 2.2, y0 + 2.2, x0 + 2.4, y0 + 2.4), (-5, 60, 2, 90), position=position)
    seen = region_sets.appearance(dataset, table)
    inside = dataset.images[position][y0:y1, x0:x1] / 255
    np.testing.assert_allclose(seen.iloc[0], [np.log(6), np.log(6), inside.mean(), 1.0])
    np.testing.assert_allclose(seen.iloc[1], [0, 0, 1, 1])  # within the white pixel; a side is a pixel at least
    np.testing.assert_allclose(seen.iloc[2, :2], np.log([7, 30]))


def test_prompts_come_by_label_and_what_lacks_is_said():
    assert texts_of(CONCEPTS, ("calcification", NORMAL)) == {
        "calcification": ("There are calcifications.",),
        "normal_tissue": ("Normal tissue.",),
    }
    named = texts_of("phantom", (*LABELS, NORMAL))
    assert list(named) == [*LABELS, NORMAL] and all(named.values())
    told = texts_of("mammo:presence", LABELS)
    assert told == texts_of("mammo", LABELS) and not any(text.lower().startswith("no ") for text in told["mass"])
    with pytest.raises(UserError, match="no prompt for 'asymmetry'"):
        texts_of(CONCEPTS, ("asymmetry",))
