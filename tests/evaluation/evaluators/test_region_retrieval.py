"""Phrases find the regions that they speak of, and regions their phrases; counted as a loop counts."""

import json

import numpy as np
import pytest
from region_fakes import RegionDataset, RegionModel

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.region_retrieval import _pairs, region_retrieval

FINDINGS = ["mass", "calcification"]


class Drawn(RegionModel):
    """Vectors of texts and of regions that are random, but their own each time."""

    def embed_crops(self, images, boxes):
        rows = [[self._drawn(str((image.sum(), *box.tolist()))) for box in own] for image, own in zip(images, boxes)]
        return np.array(rows, np.float32)

    def embed_text(self, texts):
        return np.array([self._drawn(text) for text in texts], np.float32)

    @staticmethod
    def _drawn(key):
        vector = np.random.default_rng(list(key.encode())).normal(size=6)
        return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def dataset():
    """Half of the masses' sentences are their own; the fifth image has both findings, and a sentence of each."""
    dataset = RegionDataset(8)
    dataset.index["split"] = "test"
    for row in range(0, len(dataset), 4):
        if "mass" in dataset.index["boxes_canvas"][row]:
            dataset.index.at[row, "texts"] = [f"There is a mass of {row} mm."]
    both = [{"label": "mass", "box": [4, 14, 12, 22]}, {"label": "calcification", "box": [6, 34, 12, 40]}]
    dataset.index.at[4, "boxes_canvas"] = json.dumps(both)
    dataset.index.at[4, "texts"] = ["There is a mass of 4 mm. There are calcifications. No asymmetry."]
    return dataset


def test_a_phrase_belongs_to_the_boxes_that_it_speaks_of(dataset):
    pairs = _pairs(dataset.index, [0, 4, 2, 3], ("phrase",))
    assert pairs.texts == ["There is a mass of 0 mm.", "There is a mass of 4 mm.", "There are calcifications."]
    assert pairs.regions["position"].tolist() == [0, 4, 4, 2, 3]
    assert pairs.regions["label"].tolist() == ["mass", "mass", *["calcification"] * 3]
    assert pairs.speaks.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    assert pairs.said.tolist() == [0, 1, 2]
    assert _pairs(dataset.index, [5], ("label",)).texts == []  # normal tissue
    assert set(_pairs(dataset.index, [0, 4], ("label",)).texts) == set(FINDINGS)


def test_recall_and_precision_are_those_of_a_loop(dataset):
    result = region_retrieval(Drawn(), dataset, ks=(1, 3), resamples=0, gallery=0)
    at, pairs = result.metrics, _pairs(dataset.index, range(len(dataset)), ("phrase",))
    model = Drawn()
    texts = model.embed_text(pairs.texts)
    regions = np.array(
        [
            model.embed_crops(dataset.images[row.position][None], np.array([[row[3:7]]], np.float32))[0, 0]
            for row in pairs.regions.itertuples()
        ]
    )
    labels = pairs.regions["label"].to_numpy()
    patient = dataset.index["patient"].to_numpy()[pairs.regions["position"]]
    said = pairs.said
    ways = {
        "phrase_to_region": (texts @ regions.T, pairs.speaks, labels[said], labels, patient[said], patient),
        "region_to_phrase": (regions @ texts.T, pairs.speaks.T, labels, labels[said], patient, patient[said]),
    }
    for way, (similarity, right, asked, answered, of, by) in ways.items():
        for k in (1, 3):
            first = [np.argsort(-row)[:k] for row in similarity]
            assert at[f"{way}/recall@{k}"]["value"] == pytest.approx(
                np.mean([r[f].any() for r, f in zip(right, first)])
            )
            agree = []
            for row, label, patient_of in zip(similarity, asked, of):
                others = [i for i in np.argsort(-row) if by[i] != patient_of][:k]
                agree.append(np.mean(answered[others] == label))
            assert at[f"{way}/finding/precision@{k}"]["value"] == pytest.approx(np.mean(agree))
        chance = np.mean(right.sum(1) / right.shape[1])
        assert at[f"{way}/chance@1"]["value"] == pytest.approx(chance)
    assert result.tables["counts"].loc[0].tolist() == [len(texts), len(regions), pairs.speaks.sum()]


def test_a_model_that_sees_finds_the_finding_and_the_picture_shows_the_first_region(dataset):
    result = region_retrieval(RegionModel(), dataset, resamples=20, gallery=3)
    at = {name: entry["value"] for name, entry in result.metrics.items()}
    assert at["phrase_to_region/finding/precision@1"] == 1 > at["phrase_to_region/finding/precision_chance"]
    assert at["region_to_phrase/recall@1"] > at["region_to_phrase/chance@1"]
    shown = result.tables["pictures"]
    assert len(shown) == 3 == len(result.figures) and set(shown["found"]) <= {0, 1} and shown["phrase"].str.len().all()


def test_what_is_wrong_or_lacking_is_said(dataset):
    with pytest.raises(UserError, match="no level of phrases of a region 'report'"):
        region_retrieval(Drawn(), dataset, levels=("report",))
    with pytest.raises(UserError, match="ks from 1 on"):
        region_retrieval(Drawn(), dataset, ks=(0, 1))
    silent = RegionDataset(2)
    silent.index["boxes_canvas"], silent.index["split"] = "[]", "test"
    assert "no phrase" in region_retrieval(Drawn(), silent).metrics["phrase_to_region/recall@1"]["reason"]
