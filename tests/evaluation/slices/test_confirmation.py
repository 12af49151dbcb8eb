"""Confirmation: what is frozen stays as it is, both sides are found, and what is small or unsure is no slice."""

import numpy as np
import pytest

from mammoclip_jax.evaluation.slices import confirmation
from mammoclip_jax.evaluation.slices.confirmation import ABSENT, PRESENT, Frozen
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.evaluation.statistics.paired import benjamini_hochberg

TEXT = Hypothesis("clip", ("a clip",))


def study(seed=0, n=800, gap=0.3, patients=None):
    """(scores [n, 2], truth, right, patients): decisions of class 1 are worse without the first attribute, of class 0 with."""
    rng = np.random.default_rng(seed)
    truth, has = rng.integers(0, 2, n), rng.integers(0, 2, n)
    right = rng.random(n) < np.where(has == truth, 0.95, 0.95 - gap)
    scores = np.stack([has + rng.normal(size=n) * 0.1, rng.normal(size=n)], axis=1)
    return scores, truth, right, np.arange(n).astype(str) if patients is None else patients


def test_counts_by_a_loop():
    rng = np.random.default_rng(1)
    present = rng.choice([0.0, 1.0, np.nan], (50, 3))
    right = rng.random(50) < 0.6
    for column, found in zip(present.T, confirmation.counts(present, right)):
        expected = [sum((column == a) & (right == b)) for a in (0, 1) for b in (True, False)]
        assert found.tolist() == expected


def test_no_patient_is_in_both_parts_and_classes_are_spread():
    rng = np.random.default_rng(4)
    patients, truth = rng.integers(0, 150, 600).astype(str), (rng.random(600) < 0.2).astype(int)
    discover = confirmation.parts(patients, truth, seed=1)
    assert not set(patients[discover]) & set(patients[~discover])
    assert 0.4 < discover.mean() < 0.6 and abs(truth[discover].mean() - truth[~discover].mean()) < 0.06
    assert (confirmation.parts(patients, truth, seed=1) == discover).all()


def test_both_sides_are_found_and_the_threshold_divides_them():
    scores, truth, right, patients = study()
    frozen = confirmation.freeze([TEXT, TEXT._replace(name="noise")], scores, truth, right)
    assert frozen[0].worse == (PRESENT, ABSENT) and 0.1 < frozen[0].threshold < 0.9
    table = confirmation.confirm(frozen, *study(1))
    first = table.iloc[:2]
    assert first["hypothesis"].tolist() == ["clip", "clip"] and set(first["class"]) == {0, 1}
    assert (first["verdict"] == "slice").all() and (first["q"] < 0.01).all() and (first["high"] < 0).all()
    assert (table["verdict"][2:] == "may be chance").all()
    for row in table.to_dict("records"):
        place = ["clip", "noise"].index(row["hypothesis"])
        scores, truth, right, _ = study(1)
        inside = (scores[:, place] >= row["threshold"]) == (row["worse"] == PRESENT)
        of_class = truth == row["class"]
        accuracy = [right[of_class & side].mean() for side in (inside, ~inside)]
        assert (row["accuracy_slice"], row["accuracy_rest"]) == pytest.approx(tuple(accuracy))
        assert row["gap"] == pytest.approx(accuracy[0] - accuracy[1]) and row["n_slice"] == (of_class & inside).sum()
        assert row["p"] == row["p_fisher"]
    np.testing.assert_allclose(table["q"], benjamini_hochberg(table["p"]))


def test_confirmation_moves_no_threshold_and_turns_no_side():
    frozen = [Frozen(TEXT, 0.5, (ABSENT, PRESENT))]  # the wrong sides
    table = confirmation.confirm(frozen, *(x[:, :1] if np.ndim(x) == 2 else x for x in study(2)))
    assert table["threshold"].tolist() == [0.5, 0.5] and set(zip(table["class"], table["worse"])) == {
        (0, ABSENT),
        (1, PRESENT),
    }
    assert (table["p"] > 0.99).all() and (table["verdict"] == "may be chance").all()


def test_a_small_side_is_said_to_be_and_not_tested():
    scores, truth, right, patients = study(3, n=200)
    scores[:, 0] = np.where(np.arange(200) < 40, 1.0, 0.0)
    table = confirmation.confirm([Frozen(TEXT, 0.5, (PRESENT, PRESENT))], scores[:, :1], truth, right, patients)
    assert (table["verdict"] == "too small").all() and table["p"].isna().all() and table["q"].isna().all()
    assert table["reason"].str.contains("30 are needed").all()
    whole = confirmation.confirm([Frozen(TEXT, 0.5, ("present", ""))], np.ones((200, 1)), truth, right, patients)
    assert (whole["verdict"] == "too small").all() and whole["gap"].isna().all()


def test_a_gap_whose_interval_covers_0_is_no_slice():
    """Ten patients make all the errors: the images are many, the patients few, and Fisher's test alone would be sure."""
    n = 400
    patients = np.r_[np.repeat(np.arange(10), 20), np.arange(10, 210)].astype(str)
    has, truth = np.r_[np.ones(200), np.zeros(200)], np.ones(n, int)
    right = np.ones(n, bool)
    right[:20] = False  # one patient of the ten
    frozen = [Frozen(TEXT, 0.5, (PRESENT, PRESENT))]
    table = confirmation.confirm(frozen, has[:, None], truth, right, patients)
    row = table[table["class"] == 1].iloc[0]
    assert row["p_fisher"] < 1e-5 and row["p"] > 0.02 and row["verdict"] in ("may be chance", "interval covers 0")
    pretended = [dict(row, q=0.001, high=0.01), dict(row, q=0.001, high=-0.01), dict(row, q=0.001, high=np.nan)]
    assert [confirmation._verdict(one, 0.05) for one in pretended] == ["interval covers 0", "slice", "no interval"]


def test_without_resamples_there_is_no_interval_and_so_no_slice():
    scores, truth, right, patients = study(4)
    frozen = confirmation.freeze([TEXT], scores[:, :1], truth, right)
    table = confirmation.confirm(frozen, scores[:, :1], truth, right, patients, resamples=0)
    assert table["low"].isna().all() and (table["verdict"] == "no interval").all()


def test_unknown_values_are_on_neither_side_and_no_hypotheses_make_an_empty_table():
    scores, truth, right, patients = study(5)
    column = Hypothesis("vendor=GE", column="vendor", value="GE")
    values = np.where(np.arange(800) % 4 == 0, np.nan, (scores[:, 0] > 0.5) * 1.0)[:, None]
    frozen = confirmation.freeze([column], values, truth, right)
    assert frozen[0].threshold == 0.5
    table = confirmation.confirm(frozen, values, truth, right, patients, resamples=100)
    assert (table["n_slice"] + table["n_rest"]).sum() == 600
    empty = confirmation.confirm([], np.empty((800, 0)), truth, right, patients)
    assert len(empty) == 0 and list(empty) == list(table)


def test_a_score_that_only_goes_with_a_surer_one_is_no_slice_of_its_own():
    scores, truth, right, patients = study(6, n=2000)
    rng = np.random.default_rng(7)
    proxy = scores[:, 0] + rng.normal(size=2000)  # of the attribute that matters, and noise
    own = rng.integers(0, 2, 2000)
    right &= ~((own == 1) & (rng.random(2000) < 0.15))  # and one that matters by itself
    table = np.stack([scores[:, 0], proxy, own + 0.0], axis=1)
    frozen = [
        Frozen(TEXT._replace(name=name), 0.5, (PRESENT, side)) for name, side in zip("abc", (ABSENT, ABSENT, PRESENT))
    ]
    found = confirmation.confirm(frozen, table, truth, right, patients)
    verdicts = found.groupby("hypothesis")["verdict"].agg(set)
    assert verdicts["a"] == {"slice"} and "slice" not in verdicts["b"] and "slice" in verdicts["c"]
    alike = found[found["verdict"] == "like a surer slice"]
    assert set(alike["hypothesis"]) == {"b"} and alike["reason"].str.startswith("no worse within a").all()
    assert (alike["q"] < 1e-3).any()
