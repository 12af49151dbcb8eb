"""Zero-shot against plain loops and scikit-learn: pairs and classes, of images, breasts and exams."""

import json

import numpy as np
import pandas as pd
import pytest
from fakes import FakeDataset, FakeModel
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import features, predictions, result
from mammoclip_jax.evaluation.evaluators.zero_shot import zero_shot
from mammoclip_jax.evaluation.features import LEVELS
from mammoclip_jax.evaluation.suite import evaluate

CLASSES = {"density": {"classes": {"A": ["fatty"], "B": ["scattered", "some"], "C": ["dense"], "D": ["very dense"]}}}
BATCH = 4


class Drawn(FakeModel):
    """Directions drawn from the contents of images and texts, on a coarse grid where they are to tie.

    Images are taken in batches of one size, the last filled up, as `inference.dual_encoder.DualEncoder` does.
    """

    def __init__(self, tied=False):
        super().__init__()
        self.tied, self.asked = tied, []

    def embed_image(self, images):
        rows = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            full = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])
            rows += [self._draw(int(image.astype(np.int64).sum())) for image in full][: len(part)]
        return np.stack(rows)

    def embed_text(self, texts):
        self.asked += list(texts)
        return np.stack([self._draw(sum(text.encode())) for text in texts])

    def _draw(self, seed):
        rng = np.random.default_rng(seed)
        vector = np.eye(4)[rng.integers(0, 4)] if self.tied else rng.normal(size=4)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def dataset_of(seed, densities="ABCD", patients=15):
    """Exams of unequal size, some labels unknown, one laterality too."""
    dataset, rng = FakeDataset(patients, seed=seed), np.random.default_rng(seed)
    keep = np.flatnonzero(rng.random(len(dataset)) < 0.8)
    dataset.images, dataset.index = [dataset.images[i] for i in keep], dataset.index.iloc[keep].reset_index(drop=True)
    labels = []
    for _ in keep:
        known = {"mass": int(rng.random() < 0.4), "density": str(rng.choice(list(densities)))}
        labels.append({key: value for key, value in known.items() if rng.random() < 0.9})
    dataset.index["labels"] = [json.dumps(l) for l in labels]
    dataset.index.loc[3, "laterality"] = ""
    return dataset, labels


def units(index, unit):
    """Lists of positions, by a plain loop."""
    found = {}
    for i, row in index.iterrows():
        side = row["laterality"] or row["image"]
        key = {"image": i, "breast": (row["study"], side), "exam": row["study"]}[unit]
        found.setdefault(key, []).append(i)
    return list(found.values())


def plainly_pooled(values, index, level):
    """One value, or vector, for each unit."""
    out = []
    for members in units(index, level.unit):
        if level.how == "max":
            out.append(values[members].max(0))
        elif level.unit == "exam":
            breasts = units(index.iloc[members].reset_index(drop=True), "breast")
            out.append(np.mean([values[members][b].mean(0) for b in breasts], axis=0))
        else:
            out.append(values[members].mean(0))
    return np.array(out)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_agree_with_scikit_learn_at_every_level(seed, tied):
    dataset, labels = dataset_of(seed)
    model = Drawn(tied)
    found = zero_shot(model, dataset, labels=("mass",), resamples=10)
    known = [i for i, l in enumerate(labels) if "mass" in l]
    index = dataset.index.iloc[known].reset_index(drop=True)
    truth = np.array([labels[i]["mass"] for i in known])
    text = model.embed_text(["mass", "no mass"])
    score = model.embed_image(np.stack(dataset.images))[known] @ (text[0] - text[1])
    for level in LEVELS:
        right = [truth[members].max() for members in units(index, level.unit)]
        entry = found.metrics[f"mass/auroc{level.suffix}"]
        assert entry["value"] == pytest.approx(roc_auc_score(right, plainly_pooled(score, index, level)), abs=1e-9)
        assert entry["n"] == len(right)
    row = found.tables["labels"].iloc[0]
    assert row["images"] == len(index) and row["positive_images"] == truth.sum()
    assert row["breasts"] == len(units(index, "breast")) and row["exams"] == len(units(index, "exam"))


@pytest.mark.parametrize("densities", ["ABCD", "ABD"])
@pytest.mark.parametrize("seed", range(3))
def test_classes_agree_with_scikit_learn_also_where_one_is_absent(seed, densities):
    dataset, labels = dataset_of(seed, densities)
    model = Drawn()
    found = zero_shot(model, dataset, prompts=CLASSES, temperature=0.1, resamples=10)
    known = [i for i, l in enumerate(labels) if "density" in l]
    index = dataset.index.iloc[known].reset_index(drop=True)
    number = np.array(["ABCD".index(labels[i]["density"]) for i in known])
    texts = model.embed_text(["fatty", "scattered", "some", "dense", "very dense"]).astype(np.float64)
    texts = np.stack([texts[0], texts[1] + texts[2], texts[3], texts[4]])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    cosines = model.embed_image(np.stack(dataset.images))[known] @ texts.T
    for level in LEVELS:
        truth = np.array([number[members].max() for members in units(index, level.unit)])
        logits = 10 * plainly_pooled(cosines, index, level)
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        said = chances.argmax(1)
        expected = {
            "accuracy": accuracy_score(truth, said),
            "majority": np.bincount(truth).max() / len(truth),
            "balanced_accuracy": np.mean([(said[truth == k] == k).mean() for k in set(truth)]),
            "balanced_chance": 1 / len(set(truth)),
            "macro_auroc": np.mean([roc_auc_score(truth == k, chances[:, k]) for k in set(truth)]),
        }
        if set(said) <= set(truth):
            assert balanced_accuracy_score(truth, said) == pytest.approx(expected["balanced_accuracy"])
        for name, value in expected.items():
            entry = found.metrics[f"density/{name}{level.suffix}"]
            assert entry["value"] == pytest.approx(value, abs=1e-9) and entry["n"] == len(truth)
    confusion = found.tables["confusion_density"]
    truth = np.array([number[members].max() for members in units(index, "breast")])
    said = plainly_pooled(cosines, index, LEVELS[0]).argmax(1)
    for i, name in enumerate("ABCD"):
        assert [confusion[f"said_{other}"][i] for other in "ABCD"] == [
            ((truth == i) & (said == j)).sum() for j in range(4)
        ] and confusion["truth"][i] == name


def test_temperature_moves_probabilities_and_no_decision():
    dataset, _ = dataset_of(0)
    prompts = CLASSES | {"mass": {"positive": "mass", "negative": "no mass"}}
    model = Drawn()
    raw, default, cold = (
        zero_shot(model, dataset, prompts=prompts, temperature=t, resamples=5) for t in ("none", None, 0.01)
    )
    model.logit_scale = 100.0
    learned, chosen = (
        zero_shot(model, dataset, prompts=prompts, temperature=t, resamples=5) for t in ("learned", None)
    )
    p = ["p_A", "p_B", "p_C", "p_D"]
    tables = [r.tables["predictions_density"][p] for r in (raw, default, cold, learned, chosen)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    for table in tables[3:]:
        pd.testing.assert_frame_equal(tables[2], table)
    assert np.allclose(tables[2].sum(axis=1), 1) and (tables[2].max(axis=1) > tables[0].max(axis=1)).all()
    assert "softmax of 100 times" in learned.protocol and "softmax of 1 times" in raw.protocol
    for name in ("mass/ece", "density/ece", "mass/brier"):
        assert raw.metrics[name]["value"] != cold.metrics[name]["value"]
    for level in LEVELS:
        for name in ("mass/auroc", "density/accuracy", "density/balanced_accuracy"):
            assert raw.metrics[name + level.suffix] == cold.metrics[name + level.suffix]
    for wrong in ("hot", 0, -1.0):
        with pytest.raises(UserError, match="'none', 'learned' or a number above 0"):
            zero_shot(model, dataset, temperature=wrong)
    with pytest.raises(UserError, match="no logit_scale"):
        zero_shot(FakeModel(), dataset, temperature="learned")


def test_the_published_protocol_is_of_single_images_and_raw_cosines():
    dataset, _ = dataset_of(0)
    model = Drawn()
    model.logit_scale = 100.0
    found = zero_shot(model, dataset, protocol="published", resamples=5)
    assert {"mass/auroc_image", "mass/auprc_image"} <= set(found.metrics)
    assert all(name.endswith("_image") for name in found.metrics)
    assert found.metrics["mass/auroc_image"] == zero_shot(model, dataset, resamples=5).metrics["mass/auroc_image"]
    assert "published protocol" in found.protocol and "not the published table" in found.protocol
    classes = zero_shot(model, dataset, prompts=CLASSES, protocol="published", resamples=5)
    assert all(name.endswith("_image") for name in classes.metrics)
    assert "softmax of 1 times" in classes.protocol
    with pytest.raises(UserError, match="raw cosines"):
        zero_shot(model, dataset, protocol="published", temperature=0.07)
    with pytest.raises(UserError, match="Did you mean 'published'"):
        zero_shot(model, dataset, protocol="publish")


def test_predictions_hold_every_image_and_label_and_are_read_back(tmp_path):
    dataset, labels = dataset_of(1)
    dataset.index.loc[0, "labels"] = json.dumps({"density": "E"})  # no class
    labels[0] = {}
    prompts = CLASSES | {key: {"positive": key, "negative": f"no {key}"} for key in ("mass", "cancer")}
    found = zero_shot(Drawn(), dataset, prompts=prompts, resamples=5)
    assert len(found.tables["prompts"]) == 5 + 4
    result.save([found._replace(name="one/zero_shot")], tmp_path)
    read = predictions.read_all(tmp_path)
    assert list(read["one/zero_shot/predictions"].columns) == [*predictions.COLUMNS, "score"]
    parts = {part.label: part for table in read.values() for part in predictions.labels(table)}
    assert set(parts) == {"density", "mass", "cancer"}
    for part in parts.values():
        assert part.rows["image"].tolist() == dataset.index["image"].tolist()
    assert [None if np.isnan(t) else t for t in parts["mass"].truth] == [l.get("mass") for l in labels]
    assert np.isnan(parts["cancer"].truth).all()
    truth = [None if np.isnan(t) else "ABCD"[int(t)] for t in parts["density"].truth]
    assert truth == [l.get("density") for l in labels]
    np.testing.assert_allclose(parts["density"].prediction.sum(1), 1, rtol=1e-6)


def test_what_cannot_be_measured_has_a_reason():
    dataset, _ = dataset_of(0, "A")
    metrics = zero_shot(Drawn(), dataset, prompts=CLASSES, resamples=5).metrics
    assert metrics["density/majority"]["value"] == 1 and metrics["density/accuracy"]["value"] is not None
    assert metrics["density/macro_auroc"]["reason"] == "all are of one class"
    nothing = zero_shot(Drawn(), dataset, prompts={"mass_shape": {"classes": {"round": "a", "oval": "b"}}}, resamples=5)
    assert nothing.metrics["mass_shape/accuracy"]["reason"] == "no image has this label"
    dataset.index["labels"] = json.dumps({"mass_shape": "LOBULATED"})
    other = zero_shot(Drawn(), dataset, prompts={"mass_shape": {"classes": {"round": "a", "oval": "b"}}}, resamples=5)
    assert "classes round, oval, but LOBULATED" in other.metrics["mass_shape/accuracy"]["reason"]
    dataset.index.loc[0, "labels"] = json.dumps({"mass_shape": "round"})
    other = zero_shot(Drawn(), dataset, prompts={"mass_shape": {"classes": {"round": "a", "oval": "b"}}}, resamples=5)
    assert other.tables["labels"].iloc[0][["images", "left_out_values"]].tolist() == [1, "LOBULATED"]
    assert set(other.tables["predictions_mass_shape"]["truth"]) == {"round", ""}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_no_figure_depends_on_batches_or_chunks(monkeypatch, size):
    dataset, _ = dataset_of(2)
    prompts = CLASSES | {"mass": {"positive": "mass", "negative": "no mass"}}
    expected = zero_shot(Drawn(), dataset, prompts=prompts, resamples=10)
    monkeypatch.setattr(features, "CHUNK", size)
    monkeypatch.setitem(globals(), "BATCH", max(1, size // 2))
    found = zero_shot(Drawn(), dataset, prompts=prompts, resamples=10)
    assert found.metrics == expected.metrics
    pd.testing.assert_frame_equal(found.tables["predictions"], expected.tables["predictions"])


def test_a_text_is_embedded_once_for_all_data_sets_and_evaluators():
    model = Drawn()
    datasets = {"one": FakeDataset(3), "two": FakeDataset(4, seed=1)}
    evaluate(
        model,
        datasets,
        {
            "zero_shot": {"resamples": 0},
            "again": {"evaluator": "zero_shot", "resamples": 0},
            "retrieval": {"resamples": 0},
        },
    )
    assert len(model.asked) == len(set(model.asked)) and {"mass", "no mass", "No mass."} <= set(model.asked)
