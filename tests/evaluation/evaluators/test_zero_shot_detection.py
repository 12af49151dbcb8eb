"""Regions are ranked by what their vectors say, and held against what says nothing of a finding."""

import numpy as np
import pandas as pd
import pytest
from region_fakes import CONCEPTS, RegionDataset, RegionModel

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.store import region_tables as store
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets
from mammoclip_jax.evaluation.evaluators.zero_shot_detection import _terciles, zero_shot_detection
from mammoclip_jax.evaluation.metrics.average_precision import Case, Found
from mammoclip_jax.evaluation.page.report import _caption


def grid(dataset):
    """Boxes of 8 pixels at every fourth: a table as `candidates` gives it."""
    corners = np.stack(np.meshgrid(np.arange(0, 32, 2), np.arange(10, 48, 2)), -1).reshape(-1, 2).astype(np.float32)
    boxes = np.hstack([corners, corners + 8])
    columns = ["left", "top", "right", "bottom"]
    return pd.concat([pd.DataFrame(boxes, columns=columns).assign(row=row, score=0.5) for row in range(len(dataset))])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    dataset = RegionDataset(18)
    (folder / "dataset.json").write_text('{"fingerprint": "f00"}')
    dataset.path = folder
    frame = grid(dataset).assign(label="", cosines=[[]] * len(grid(dataset)))
    store.write(folder, "grid", frame, {"method": "grid"})
    return dataset


@pytest.fixture(scope="module")
def result(dataset):
    return zero_shot_detection(
        RegionModel(), dataset, regions="grid", concepts=CONCEPTS, iou=(0.25,), gallery=4, resamples=30
    )


def test_what_the_model_sees_is_found_before_what_is_bright(result):
    at = {name: entry["value"] for name, entry in result.metrics.items()}
    assert at["mass/covered@0.25"] == 1 == at["calcification/covered@0.25"]
    assert at["zero_shot/mass/ap@0.25"] == 1 == at["zero_shot/mass@0.25/lesion/sensitivity@0.25_fp"]
    assert at["brightness/mass/ap@0.25"] > 0.8  # it is the brightest; a calcification is not
    assert at["zero_shot/calcification@0.25/lesion/sensitivity@1_fp"] == 1
    assert at["brightness/calcification@0.25/lesion/sensitivity@1_fp"] < 0.5
    for label in ("mass", "calcification"):
        difference = at[f"zero_shot/{label}@0.25/lesion/sensitivity@1_fp_minus_brightness"]
        ways = (at[f"{way}/{label}@0.25/lesion/sensitivity@1_fp"] for way in ("zero_shot", "brightness"))
        assert difference == pytest.approx(next(ways) - next(ways))
        assert at[f"random/{label}/ap@0.25"] < 0.3 > at[f"proposal/{label}/ap@0.25"]


def test_the_detections_are_those_left_by_suppression_and_lie_where_they_say(result, dataset):
    table = result.tables["detections"]
    assert (table.groupby(["image", "label"]).size() <= 20).all()
    for (image, label), own in table.groupby(["image", "label"]):
        boxes = own[["x0", "y0", "x1", "y1"]].to_numpy()
        overlaps = iou(boxes[:, None], boxes)
        assert (overlaps[~np.eye(len(boxes), dtype=bool)] <= 0.3).all() and own["score"].is_monotonic_decreasing
    assert table["matched"].sum() == sum(e["n"] for n, e in result.metrics.items() if n.endswith("covered@0.25"))


def test_pictures_are_of_images_with_and_without_and_name_the_phrase(result):
    shown = result.tables["pictures"]
    assert set(shown["figure"]) <= set(result.figures) and set(shown["label"]) == {"mass", "calcification"}
    assert (shown["boxes"] > 0).any() and (shown["boxes"] == 0).any()
    captions = [_caption(row)["note"] for row in shown.to_dict("records")]
    assert "\u201cmass\u201d: 1 true box, 1 found" in captions and "\u201cmass\u201d: 0 true boxes, 0 found" in captions


def test_regions_of_other_images_are_no_candidates(dataset):
    found = region_sets.candidates(dataset, [4, 2], "grid")
    assert set(found["position"]) == {2, 4} and len(found) == 2 * (len(grid(dataset)) // len(dataset))
    sliding = region_sets.candidates(dataset, [4, 2], region_sets.SLIDING)
    alone = region_sets.candidates(dataset, [4], region_sets.SLIDING)
    assert sliding[sliding["position"] == 4].reset_index(drop=True).equals(alone) and 8 < len(alone) <= 64


def test_terciles_are_of_the_boxes_of_the_label():
    nothing = Found(np.zeros((0, 4)), np.zeros(0))
    cases = [Case("a", np.array([[0, 0, side, 1.0]]), nothing) for side in (1, 2, 3, 4)]
    assert _terciles(cases, 10) == pytest.approx((0.2, 0.3)) and _terciles([], 10) == (0.0, 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"regions": "grids"}, "no regions 'grids'.*Did you mean 'grid'"),
        ({"iou": (0.0,)}, "IoUs must be above 0"),
        ({"vectors": "stages"}, "no kind of vectors beside texts 'stages'"),
    ],
)
def test_what_is_wrong_is_said(dataset, options, message):
    with pytest.raises(UserError, match=message):
        zero_shot_detection(RegionModel(), dataset, **{"concepts": CONCEPTS, "regions": "grid"} | options)
