import numpy as np
import pytest

from .fakes import FakeDataset, FakeModel
from mammoclip_jax.evaluation.retrieval import directed, hit, merge, retrieval


def by_shuffling(similarity, relevant, k, tries, rng):
    """Recall@k of one query with ties broken by actual shuffling."""
    hits = 0
    for _ in range(tries):
        order = rng.permutation(len(similarity))
        first = order[np.argsort(-similarity[order], kind="stable")][:k]
        hits += relevant[first].any()
    return hits / tries


def test_recall_agrees_with_sorting_where_nothing_ties():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 6)), rng.normal(size=(25, 6))
    relevant = rng.random((30, 25)) < 0.1
    relevant[np.arange(30), rng.integers(0, 25, 30)] = True
    found = directed(queries, gallery, relevant, np.arange(30), (1, 5, 10), resamples=20)
    ranks = []
    for query, right in zip(queries, relevant):
        order = np.argsort(-(gallery @ query))
        ranks.append(1 + np.flatnonzero(right[order])[0])
    for k in (1, 5, 10):
        assert found[f"recall@{k}"]["value"] == pytest.approx(np.mean(np.array(ranks) <= k), abs=1e-12)
    assert found["median_rank"]["value"] == pytest.approx(np.median(ranks))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ties_are_broken_at_random_in_expectation(k):
    rng = np.random.default_rng(k)
    similarity = rng.integers(0, 3, size=12).astype(float)
    relevant = np.zeros(12, dtype=bool)
    relevant[rng.permutation(12)[:3]] = True
    best = similarity[relevant].max()
    standing = [np.array([x]) for x in ((similarity > best).sum(), ((similarity == best) & ~relevant).sum(),
                                        ((similarity == best) & relevant).sum())]
    assert hit(k, *standing)[0] == pytest.approx(by_shuffling(similarity, relevant, k, 4000, rng), abs=0.03)


def test_a_model_that_sees_nothing_scores_chance():
    queries, gallery = np.ones((8, 4)) / 2, np.ones((10, 4)) / 2
    relevant = np.arange(8)[:, None] == np.arange(10)
    found = directed(queries, gallery, relevant, np.arange(8), (1, 5, 10), resamples=10)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"]["value"] == pytest.approx(k / 10)
        assert found[f"chance@{k}"]["value"] == pytest.approx(k / 10)
    assert found["median_rank"]["value"] == pytest.approx(5.5)


def test_k_beyond_the_gallery_is_a_sure_hit():
    found = directed(np.eye(3), np.eye(3), np.eye(3, dtype=bool), np.arange(3), (10,), resamples=5)
    assert found["recall@10"]["value"] == 1.0 and found["chance@10"]["value"] == 1.0


def test_identical_texts_are_merged_and_any_of_them_is_a_hit():
    assert merge(["No mass.", "A mass.", "no  mass. "]) == (["No mass.", "A mass."], pytest.approx([0, 1, 0]))
    dataset = FakeDataset(10)
    result = retrieval(FakeModel(), dataset, resamples=20)
    table = result.tables["directions"].set_index("direction")
    masses = dataset.index["labels"].str.contains("1").sum() // 2
    assert table.loc["image_to_text", "queries"] == 20
    assert table.loc["image_to_text", "gallery"] == masses + 1      # each mass text is its own, the others are one
    # Unmerged, a breast without a mass would have to find its own among 20 - masses identical texts.
    expected = ((20 - masses) + masses * (1 / masses)) / 20              # the mass texts tie with each other
    assert result.metrics["image_to_text/recall@1"]["value"] == pytest.approx(expected)
    assert result.metrics["image_to_text/commonest@1"]["value"] == pytest.approx((20 - masses) / 20)


def test_breasts_without_a_text_are_left_out_and_none_at_all_gives_a_reason():
    dataset = FakeDataset(3)
    dataset.index["texts"] = [["a text"]] * 4 + [[]] * 8
    assert retrieval(FakeModel(), dataset, resamples=5).metrics["image_to_text/recall@1"]["n"] == 2
    dataset.index["texts"] = [[]] * 12
    assert "no image has a text" in retrieval(FakeModel(), dataset).metrics["text_to_image/recall@5"]["reason"]
