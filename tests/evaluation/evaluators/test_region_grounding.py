"""The region that is nearest to a sentence is scored against the boxes of what it names."""

import json

import numpy as np
import pandas as pd
import pytest
from region_fakes import RegionDataset, RegionModel

from mammoclip_jax.boxes import iou
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets
from mammoclip_jax.evaluation.evaluators.region_grounding import _right, region_grounding
from mammoclip_jax.evaluation.page.report import _caption


@pytest.fixture(scope="module")
def dataset():
    """A sixth of the breasts with a mass say nothing of it; one image has no region."""
    dataset = RegionDataset(18)
    for row in (6 * 2, 6 * 2 + 1):  # the left breast of patient 3: in the test part
        dataset.index.at[row, "texts"] = ["No mass."]
    return dataset


@pytest.fixture(autouse=True)
def grid(monkeypatch):
    """Boxes of 6 pixels at every third, in place of sliding ones."""
    corners = np.stack(np.meshgrid(np.arange(0, 30, 3), np.arange(10, 48, 3)), -1).reshape(-1, 2).astype(float)

    def candidates(dataset, positions, regions, seed=0):
        assert regions == "sliding"
        box = pd.DataFrame(np.hstack([corners, corners + 6]), columns=region_sets.BOX).assign(score=0.0)
        return pd.concat([box.assign(position=int(p)) for p in positions if p != 26], ignore_index=True)

    monkeypatch.setattr(region_sets, "candidates", candidates)


def test_the_best_region_is_the_sentences_and_brightness_and_centre_have_no_part_in_it(dataset):
    dataset.index["split"] = "test"
    result = region_grounding(RegionModel(), dataset, resamples=30, gallery=2)
    at, table = {name: entry["value"] for name, entry in result.metrics.items()}, result.tables["images"]
    assert at["calcification/regions/pointing_game"] > 0.5 > at["calcification/brightness/pointing_game"]
    assert at["mass/regions/best_region_iou_0.25"] == 1 and at["mass/centre/pointing_game"] < 0.5
    assert at["mass/without_sentence"] == 2 and len(result.tables["without_sentence"]) == 2
    masses = sum("mass" in boxes for boxes in dataset.index["boxes_canvas"])
    lost = at["mass/without_region"] + at["calcification/without_region"]
    assert result.metrics["mass/regions/pointing_game"]["n"] + 2 + at["mass/without_region"] == masses and lost == 1
    for label, name in (("mass", "pointing_game"), ("calcification", "best_region_iou_0.1")):
        difference = at[f"{label}/regions/{name}_minus_brightness"]
        assert difference == pytest.approx(at[f"{label}/regions/{name}"] - at[f"{label}/brightness/{name}"])
    for by in ("regions", "chance"):
        own = table[(table["by"] == by) & (table["label"] == "mass")]
        assert at[f"mass/{by}/pointing_game"] == pytest.approx(own["hit"].mean())
    assert 0 < at["mass/chance/pointing_game"] < 0.2
    captions = [_caption(row) for row in result.tables["gallery"].to_dict("records")]
    assert len(captions) == 4 and {c["note"] for c in captions} == {
        "\u201cThere is a mass.\u201d",
        "\u201cThere are calcifications.\u201d",
    }


def test_a_region_is_right_by_its_centre_and_by_the_box_it_overlaps_most():
    truth = np.array([[0, 0, 10, 10.0], [20, 20, 24, 24]])
    regions = np.array([[4, 4, 14, 14.0], [6, 6, 16, 16], [20, 20, 24, 26]])
    found = _right(regions, truth)
    assert found["hit"].tolist() == [1, 0, 1]
    best = iou(regions[:, None], truth).max(axis=1)
    for least in (0.1, 0.25, 0.5):
        assert found[f"over_{least:g}"].tolist() == (best >= least).tolist()


def test_what_is_wrong_is_said(dataset):
    with pytest.raises(UserError, match="no label of the evaluator region_grounding 'masss'. Did you mean 'mass'"):
        region_grounding(RegionModel(), dataset, labels=("masss",))
    assert json.loads(dataset.index["boxes_canvas"][0])  # of the fakes: the first breast has a box
