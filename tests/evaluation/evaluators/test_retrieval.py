import json

import numpy as np
import pytest
from fakes import FakeDataset, FakeModel

from mammoclip_jax.data.batches.units import breasts
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import features
from mammoclip_jax.evaluation.evaluators.retrieval import directed, label_classes, merge, retrieval
from mammoclip_jax.evaluation.metrics import ranking


def test_recall_agrees_with_sorting_where_nothing_ties():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 6)), rng.normal(size=(25, 6))
    gallery_group = rng.integers(0, 12, 25)
    query_group = rng.choice(gallery_group, 30)
    found = directed(queries, gallery, query_group, gallery_group, np.arange(30), (1, 5, 10), resamples=20)
    ranks = []
    for query, group in zip(queries, query_group):
        order = np.argsort(-(gallery @ query))
        ranks.append(1 + np.flatnonzero(gallery_group[order] == group)[0])
    for k in (1, 5, 10):
        assert found[f"recall@{k}"]["value"] == pytest.approx(np.mean(np.array(ranks) <= k), abs=1e-12)
    assert found["median_rank"]["value"] == pytest.approx(np.median(ranks))
    assert found["mean_rank"]["value"] == pytest.approx(np.mean(ranks))


def test_a_model_that_sees_nothing_scores_chance():
    queries, gallery = np.ones((8, 4)) / 2, np.ones((10, 4)) / 2
    found = directed(queries, gallery, np.arange(8), np.arange(10), np.arange(8), (1, 5, 10), resamples=10)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"]["value"] == pytest.approx(k / 10)
        assert found[f"chance@{k}"]["value"] == pytest.approx(k / 10)
    for name in ("median_rank", "mean_rank", "chance_rank"):
        assert found[name]["value"] == pytest.approx(5.5)


def test_k_beyond_the_gallery_is_a_sure_hit():
    found = directed(np.eye(3), np.eye(3), np.arange(3), np.arange(3), np.arange(3), (10,), resamples=5)
    assert found["recall@10"]["value"] == 1.0 and found["chance@10"]["value"] == 1.0


def test_identical_texts_are_merged_and_any_of_them_is_a_hit():
    assert merge(["No mass.", "A mass.", "no  mass. "]) == (["No mass.", "A mass."], pytest.approx([0, 1, 0]))
    dataset = FakeDataset(10)
    result = retrieval(FakeModel(), dataset, resamples=20)
    table = result.tables["directions"].set_index("direction")
    masses = dataset.index["labels"].str.contains("1").sum() // 2
    assert table.loc["image_to_text", "queries"] == 20
    assert table.loc["image_to_text", "gallery"] == masses + 1  # each mass text is its own, the others are one
    # Unmerged, a breast without a mass would have to find its own among 20 - masses identical texts.
    expected = ((20 - masses) + masses * (1 / masses)) / 20  # the mass texts tie with each other
    assert result.metrics["image_to_text/recall@1"]["value"] == pytest.approx(expected)
    assert result.metrics["image_to_text/commonest@1"]["value"] == pytest.approx((20 - masses) / 20)


def test_breasts_without_a_text_are_left_out_and_none_at_all_gives_a_reason():
    dataset = FakeDataset(3)
    dataset.index["texts"] = [["a text"]] * 4 + [[]] * 8
    assert retrieval(FakeModel(), dataset, resamples=5).metrics["image_to_text/recall@1"]["n"] == 2
    dataset.index["texts"] = [[]] * 12
    assert "no image has a text" in retrieval(FakeModel(), dataset).metrics["text_to_image/recall@5"]["reason"]


class Words(FakeModel):
    """Texts and images as directions drawn from their own contents: nothing ties, nothing is known."""

    def embed_image(self, images):
        return np.stack([self._draw(int(image.astype(np.int64).sum())) for image in images])

    def embed_text(self, texts):
        return np.stack([self._draw(sum(text.encode())) for text in texts])

    def _draw(self, seed):
        vector = np.random.default_rng(seed).normal(size=5)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_near_texts_are_hits_for_each_other_and_stay_in_the_gallery():
    dataset = FakeDataset(6)
    texts = [
        "There is a large spiculated mass in the upper outer quadrant of the left breast.",
        "There is a large spiculated mass in the upper outer quadrant of the left breast today.",
        "Benign calcifications.",
        "no mass",
        "No mass.",
    ]
    dataset.index["texts"] = [[texts[i // 2 % 5]] for i in range(24)]
    strict, near = (retrieval(Words(), dataset, near=near, resamples=5) for near in (1.0, 0.8))
    for result, different in ((strict, 4), (near, 3)):
        assert result.tables["directions"]["different_texts"].tolist() == [different] * 2
        assert result.tables["directions"]["gallery"].tolist() == [4, 12]
    assert near.metrics["image_to_text/chance@1"]["value"] > strict.metrics["image_to_text/chance@1"]["value"]
    assert "TF-IDF cosine >= 0.8" in near.protocol and "TF-IDF" not in strict.protocol
    for wrong in ({"near": 0}, {"near": 1.2}, {"ks": (0,)}, {"units": "exam"}):
        with pytest.raises(UserError):
            retrieval(Words(), dataset, **wrong)


@pytest.mark.parametrize("units", ["breast", "image"])
def test_precision_agrees_with_a_plain_loop(units):
    dataset, model = FakeDataset(7), Words()
    result = retrieval(model, dataset, units=units, labels=("findings", "mass"), ks=(1, 3), resamples=10)
    index = dataset.index
    vectors = model.embed_image(np.stack(dataset.images)).astype(np.float64)
    step = 2 if units == "breast" else 1
    if units == "breast":  # the fake's two views of a breast follow each other
        vectors = vectors.reshape(-1, 2, 5).mean(1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = model.embed_text([t[0] for t in index["texts"].iloc[::step]]).astype(np.float64)
    mass = np.array([json.loads(l)["mass"] for l in index["labels"].iloc[::step]])
    patient = index["patient"].iloc[::step].to_numpy()
    for way, (queries, gallery) in {"image_to_image": (vectors, vectors), "text_to_image": (texts, vectors)}.items():
        for k in (1, 3):
            shares = []
            for q in range(len(queries)):
                others = np.flatnonzero(patient != patient[q])
                order = others[np.argsort(-(gallery[others] @ queries[q]))][:k]
                shares.append(np.mean(mass[order] == mass[q]))
            for label in ("findings", "mass"):
                entry = result.metrics[f"{way}/{label}/precision@{k}"]
                assert entry["value"] == pytest.approx(np.mean(shares)) and entry["n"] == len(queries)


def test_precision_without_the_label_or_with_one_patient_gives_reasons():
    result = retrieval(FakeModel(), FakeDataset(3), labels=("density",), resamples=5)
    assert "nothing has this label" in result.metrics["image_to_image/density/precision@5"]["reason"]
    result = retrieval(FakeModel(), FakeDataset(1), resamples=0)
    assert "one patient" in result.metrics["image_to_image/findings/precision@5"]["reason"]
    result = retrieval(FakeModel(), FakeDataset(3), labels=(), resamples=5)
    assert not any("precision" in name for name in result.metrics)


def test_classes_of_a_breast_come_from_all_its_images():
    rows = FakeDataset(2).index
    rows["boxes"] = "[]"
    rows["labels"] = [
        json.dumps(labels)
        for labels in (
            {"mass": 1, "density": "b"},
            {"mass": 0, "calcification": 1, "density": 2},
            {"mass": 0, "density": "A"},
            {"mass": 0, "density": "C"},
            {"birads": "4A"},
            {"birads": 4},
            {},
            {},
        )
    ]
    group = breasts(rows)
    assert label_classes(rows, group, "findings").tolist() == ["calcification, mass", "none", "", ""]
    assert label_classes(rows, group, "mass").tolist() == ["1", "0", "", ""]
    assert label_classes(rows, group, "density").tolist() == ["B", "", "", ""]
    assert label_classes(rows, group, "birads").tolist() == ["", "", "4", ""]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_no_figure_depends_on_chunks_or_blocks(monkeypatch, size):
    dataset = FakeDataset(5)
    expected = retrieval(Words(), dataset, resamples=10).metrics
    monkeypatch.setattr(features, "CHUNK", size)
    monkeypatch.setattr(ranking, "ELEMENTS", 7 * size)
    assert retrieval(Words(), dataset, resamples=10).metrics == expected
