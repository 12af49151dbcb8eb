"""Columns found in the other view, against plain loops over breasts, boxes and columns."""

import json

import numpy as np
import pytest
from fakes import SHAPE, FakeDataset, FakeModel

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.correspondence import correspondence, numbers
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.explain.maps import Grid

CELL, ROWS, COLUMNS, STRIDE = (3, 1), 2, 6, 8  # 8 x 6 patches: the last two rows are in no mega-patch


class WithHead(FakeModel):
    """Mega-patches drawn from the images' contents; or, where it `knows`, those that hold the brightest pixel alike."""

    def __init__(self, knows=False, **head):
        super().__init__()
        self.knows, self.config = knows, defaults()
        self.config.model.heads.mine = dict(kind="cross_view", stage="stage_3", cell=CELL, **head)

    def stage_grid(self, stage):
        assert stage == "stage_3"
        return Grid(STRIDE, STRIDE / 2, STRIDE / 2)

    def head_outputs(self, name, images):
        assert name == "mine" and images.shape[1:] == (2, *SHAPE)
        cells, rebuilt = zip(*(self._of_pair(pair) for pair in images))
        return {"cells": np.array(cells), "column_cosines": np.array(rebuilt)}

    def _of_pair(self, pair):
        rng = np.random.default_rng([int(image.sum()) for image in pair])
        cells = rng.normal(size=(2, ROWS * COLUMNS, 4))
        rebuilt = rng.uniform(-1, 1, (2, ROWS * COLUMNS, COLUMNS))
        for view in range(2) if self.knows else ():
            y, x = np.argwhere(pair[view] == 240).mean(axis=0) + 0.5
            row = min(int(y // STRIDE // CELL[0]), ROWS - 1)
            cells[view, row * COLUMNS + int(x // STRIDE)] = 100
        return cells, rebuilt


def dataset_of(seed, patients=40):
    """Masses that lie elsewhere in each view, and breasts of every kind that cannot be asked about."""
    dataset, rng = FakeDataset(patients, seed=seed), np.random.default_rng(seed)
    drop = []
    for i in range(len(dataset)):
        x, y = int(rng.integers(0, 20)), int(rng.integers(14, 50))
        boxes = [{"label": "mass", "box": [x, y, x + 8, y + 8]}]
        kind = rng.integers(0, 12)
        if kind == 0:
            boxes = []
        elif kind == 1:
            boxes += [{"label": "mass", "box": [20, 30, 24, 34]}, {"label": "calcification", "box": [2, 30, 4, 33]}]
        elif kind == 2 or (i // 2) % 9 == 0:
            left = 42 if i % 4 == 2 else 3  # 42: small, in a column where there is no breast
            boxes = [{"label": "calcification", "box": [left, 20, left + 4, 24]}] if (i // 2) % 9 == 0 else boxes
            drop += [i] if kind == 2 else []
        dataset.images[i] = np.where(dataset.images[i] > 200, 90, dataset.images[i])
        if i % 2:  # MLO reaches further, into the last column
            dataset.images[i][18:46, 30:46] = 90
        dataset.images[i][y : y + 8, x : x + 8] = 240
        dataset.index.loc[i, "boxes_canvas"] = json.dumps(boxes)
    keep = [i for i in range(len(dataset)) if i not in drop]
    dataset.images, dataset.index = [dataset.images[i] for i in keep], dataset.index.iloc[keep].reset_index(drop=True)
    return dataset


def place_of(box):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    row = int(y // STRIDE) // CELL[0]
    return (row, int(x // STRIDE)) if row < ROWS else None


def plainly(model, dataset, label, breast_columns):
    """(states, [(query's column, true column, candidates, hit, hit by what is rebuilt)])"""
    states, items = {}, []
    for _, group in dataset.index.groupby(["study", "laterality"], sort=False):
        boxes = {
            row["view"]: (i, [item["box"] for item in json.loads(row["boxes_canvas"]) if item["label"] == label])
            for i, row in group.iterrows()
        }
        found = [len(own) for _, own in boxes.values()]
        if sum(found) == 0:
            state = "no_box"
        elif set(boxes) != {"CC", "MLO"}:
            state = "one_view"
        elif min(found) == 0:
            state = "box_in_one_view"
        elif max(found) > 1:
            state = "several_boxes"
        else:
            places = [place_of(boxes[view][1][0]) for view in ("CC", "MLO")]
            state = "off_grid" if None in places else "scored"
        states[state] = states.get(state, 0) + 1
        if state != "scored":
            continue
        rows = [boxes[view][0] for view in ("CC", "MLO")]
        outputs = model.head_outputs("mine", np.stack([dataset.images[i] for i in rows])[None])
        cells, rebuilt = outputs["cells"][0], outputs["column_cosines"][0]
        for view in range(2):
            (row, own), true = places[view], places[1 - view][1]
            query = cells[view, row * COLUMNS + own]
            best, best_rebuilt = (-2, None), (-2, None)
            candidates = sorted({*breast_columns(dataset.images[rows[1 - view]]), true})
            for column in candidates:
                for other_row in range(ROWS):
                    key = cells[1 - view, other_row * COLUMNS + column]
                    best = max(best, (query @ key / np.linalg.norm(query) / np.linalg.norm(key), column))
                best_rebuilt = max(best_rebuilt, (rebuilt[view, row * COLUMNS + own, column], column))
            items.append((own, true, len(candidates), best[1] == true, best_rebuilt[1] == true))
    return states, items


def lit_columns(image):
    """Where a column has breast in more than a twentieth of its pixels."""
    return [k for k in range(COLUMNS) if (image[:, STRIDE * k : STRIDE * (k + 1)] > 0).mean() > 0.05]


@pytest.mark.parametrize("seed", range(2))
def test_hits_and_baselines_agree_with_plain_loops(seed):
    model, dataset = WithHead(), dataset_of(seed)
    result = correspondence(model, dataset, head="mine", resamples=20)
    counts = result.tables["breasts"].set_index("label")
    for label in ("mass", "calcification"):
        states, items = plainly(model, dataset, label, lit_columns)
        expected = {name: states.get(name, 0) for name in counts.columns}
        assert counts.loc[label].to_dict() == expected and sum(expected.values()) > 60
        own, true, columns, hits, rebuilt = np.array(items).T
        values = {
            "hit_rate": hits.mean(),
            "hit_rate_rebuilt": rebuilt.mean(),
            "column_chance": (1 / columns).mean(),
            "same_column": (own == true).mean(),
        }
        values["ratio_to_column_chance"] = hits.mean() / values["column_chance"]
        values["ratio_to_same_column_rebuilt"] = rebuilt.mean() / values["same_column"]
        values["scored"] = expected["scored"] / (sum(expected.values()) - expected["no_box"])
        for name, value in values.items():
            assert result.metrics[f"{label}/{name}"]["value"] == pytest.approx(value), name
        assert result.metrics[f"{label}/hit_rate"]["n"] == len(items) == 2 * expected["scored"]
    assert all(counts.loc["mass"] > 0)  # each kind of breast occurs
    rows = result.tables["lesions"]
    assert set(rows["from"] + rows["to"]) == {"CCMLO", "MLOCC"}


def test_shuffled_columns_take_away_what_a_model_knows():
    model, dataset = WithHead(knows=True), dataset_of(0)
    result = correspondence(model, dataset, head="mine", labels=("mass",), shuffles=50, resamples=20)
    value = {name.partition("/")[2]: entry["value"] for name, entry in result.metrics.items()}
    assert value["hit_rate"] == 1 and value["same_column"] < 0.6
    n = 50 * result.metrics["mass/shuffled"]["n"]
    chance = value["column_chance"]
    assert abs(value["shuffled"] - chance) < 4 * np.sqrt(chance * (1 - chance) / n)
    again = correspondence(model, dataset, head="mine", labels=("mass",), shuffles=50, resamples=20)
    other = correspondence(model, dataset, head="mine", labels=("mass",), shuffles=50, resamples=20, seed=1)
    assert again.metrics == result.metrics
    assert other.metrics["mass/shuffled"]["value"] != value["shuffled"]


def test_a_model_that_says_the_same_of_all_columns_scores_chance():
    class Flat(WithHead):
        def _of_pair(self, pair):
            return np.ones((2, ROWS * COLUMNS, 4)), np.zeros((2, ROWS * COLUMNS, COLUMNS))

    metrics = correspondence(Flat(), dataset_of(0), head="mine", resamples=20).metrics
    for name in ("hit_rate", "hit_rate_rebuilt", "shuffled"):
        assert metrics[f"mass/{name}"]["value"] == pytest.approx(metrics["mass/column_chance"]["value"])


def test_points_belong_to_the_patch_whose_centre_is_nearest():
    # Centres at 0.5, 8.5, 16.5, 24.5 in 32 pixels, mega-patches of two; of three the fourth patch is in none.
    points = np.array([0.0, 4.4, 4.6, 12.4, 12.6, 20.4, 20.6, 32.0])
    assert numbers(points, 8, 0.5, 2, 2, 32).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert numbers(points, 8, 0.5, 1, 4, 32).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert numbers(points, 8, 0.5, 3, 1, 32).tolist() == [0, 0, 0, 0, 0, 0, -1, -1]


def test_what_cannot_be_asked_has_a_reason_or_an_error():
    dataset = FakeDataset(4)
    nothing = correspondence(WithHead(), dataset, head="mine", labels=("calcification",), resamples=5)
    assert "no breast has one box" in nothing.metrics["calcification/hit_rate"]["reason"]
    assert nothing.metrics["calcification/scored"]["reason"] == "no breast has a box"
    with pytest.raises(UserError, match="this model has no head"):
        correspondence(FakeModel(), dataset)
    with pytest.raises(UserError, match=r"this model has mine \(cross_view\)\. Give its option head"):
        correspondence(WithHead(), dataset)
    with pytest.raises(UserError, match="no place in the image"):
        correspondence(WithHead(pooling="attention"), dataset, head="mine")
    with pytest.raises(UserError, match="shuffles=0"):
        correspondence(WithHead(), dataset, head="mine", shuffles=0)


def test_it_is_an_evaluator_of_a_config():
    (result,) = evaluate(WithHead(), {"d": FakeDataset(5)}, {"correspondence": {"head": "mine", "resamples": 5}})
    assert result.name == "d/correspondence" and "MLO as it is, one scale for each image" in result.protocol
