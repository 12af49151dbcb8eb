"""The repair mends the worst group as far as true groups do, with one score an image; and what a page is given."""

import numpy as np
import pandas as pd
import pytest
from fixture_checks import Fixture, ladder_planted
from planted_slices import PLANTED, planted, texts
from threadpoolctl import threadpool_limits

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import analyse, mend
from mammoclip_jax.evaluation.slices.mend import CLASSIFIER, DFR, MEAN_HEAD, REPAIRED
from mammoclip_jax.evaluation.slices.phrases import Phrases
from mammoclip_jax.evaluation.slices.run import Options, find

OPTIONS = Options(known="hidden", threshold=0.5, resamples=100, draws=2, cs=(0.01, 0.1))
SIZES = (1500, 2000, 1500)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def whole():
    data = planted(0, SIZES)
    columns = data.test.columns.assign(vendor=np.where(np.arange(1500) % 3, "GE", "Hologic"))
    data = data._replace(test=data.test._replace(columns=columns))
    return data, analyse.analyse(data.train, data.validation, data.test, data.bank, data.embed, options=OPTIONS)


def mended(repaired) -> dict[str, tuple[float, float]]:
    """{model: (worst group of the planted attribute, accuracy)}."""
    shown = repaired.figures.set_index(["model", "attribute", "figure"])["value"]
    known = next(name for name in repaired.figures["attribute"] if name.endswith("(true)"))
    return {model: (shown[model, known, "worst group"], shown[model, "", "accuracy"]) for model in repaired.scores}


def judge(figures) -> None:
    before, after, ceiling = (figures[model] for model in (CLASSIFIER, REPAIRED, DFR))
    assert after[0] >= before[0] + 0.08 and after[0] >= ceiling[0] - 0.02 and after[1] >= before[1] - 0.03


def test_the_repair_of_the_planted_file_reaches_that_with_true_groups(fixtures):
    _, repaired = ladder_planted.run(Fixture(fixtures / "ladder_planted.npz", np.float64))
    figures = mended(repaired)
    judge(figures)
    assert figures[REPAIRED][0] >= 0.92


def test_the_repair_of_own_data_does_and_its_gain_is_beyond_chance(whole):
    _, found = whole
    judge(mended(found.repaired))
    row = found.repaired.figures.set_index(["model", "attribute", "figure"]).loc[
        (REPAIRED, "hidden (true)", "worst group")
    ]
    assert row["gain_low"] > 0.05 and row["gain_low"] < row["gain"] < row["gain_high"]
    assert found.metrics[f"{REPAIRED}/hidden (true)/worst group_gain"]["low"] == row["gain_low"]


@pytest.mark.slow
def test_the_repair_of_six_seeds():
    read = Phrases(texts(), leave_out=("cancer",))
    for seed in range(6):
        data = planted(seed, (3000, 2000, 3000))
        options = OPTIONS._replace(leave_out=("hidden",), resamples=50)
        found = find(data.train, data.validation, data.bank, data.embed, phrases=read, options=options)
        judge(mended(mend.mend(data.train, data.validation, data.test, found, options)))


def test_one_score_of_every_image_whatever_its_class(whole):
    data, found = whole
    turned = data.test._replace(truth=1 - data.test.truth)
    again = mend.mend(data.train, data.validation, turned, found.findings, OPTIONS._replace(resamples=0))
    for model, scores in found.repaired.scores.items():
        assert scores.shape == (1500,) and np.isfinite(scores).all()
        np.testing.assert_array_equal(scores, again.scores[model])
    assert found.repaired.thresholds == again.thresholds
    head = found.repaired.heads[MEAN_HEAD]
    np.testing.assert_allclose(head.probabilities(data.test.features), found.repaired.scores[MEAN_HEAD])


def test_groups_and_figures_by_a_loop(whole):
    data, found = whole
    groups = found.repaired.groups.set_index(["model", "attribute", "group"])
    hidden, truth = data.test.columns["hidden"].to_numpy(), data.test.truth
    for model in (CLASSIFIER, REPAIRED, "erm on validation"):
        right = (found.repaired.scores[model] >= found.repaired.thresholds[model]) == (truth == 1)
        for label in (0, 1):
            for side, said in enumerate(("without", "with")):
                row = groups.loc[(model, "hidden (true)", f"class {label} {said}")]
                chosen = (truth == label) & (hidden == side)
                assert row["accuracy"] == pytest.approx(right[chosen].mean()) and row["n"] == chosen.sum()
                assert row["low"] < row["accuracy"] < row["high"]


def test_a_page_is_given_all_it_shows(whole):
    _, found = whole
    assert found.findings.slices[0] == PLANTED and found.metrics["slices"]["value"] == len(found.findings.slices)
    assert found.metrics["precision_at_10"]["value"] > 0.9
    rates = found.rates.set_index(["model", "slice", "figure"])
    worse, mended = (
        rates.loc[(m, f"{PLANTED} absent, class 1", "sensitivity")]["value"] for m in (CLASSIFIER, REPAIRED)
    )
    assert mended > worse + 0.05
    assert set(found.fairness["column"]) == {"hidden", "vendor"} and set(found.fairness["model"]) == {
        CLASSIFIER,
        REPAIRED,
    }
    sure = found.fairness[(found.fairness["q"] < 0.01) & (found.fairness["model"] == CLASSIFIER)]
    assert "vendor" not in set(sure["column"]) and "hidden" in set(sure["column"])
    assert set(found.examples["right"]) == {True, False} and "R² 0.8" in found.protocol


def test_without_the_shortcut_nothing_is_found_and_nothing_mended():
    data = planted(1, SIZES, agreement=0.5)
    options = OPTIONS._replace(leave_out=("hidden",))
    found = analyse.analyse(data.train, data.validation, data.test, data.bank, data.embed, options=options)
    assert (
        found.findings.slices == ()
        and found.repaired is None
        and found.notes == ("no slice was confirmed: nothing is mended",)
    )
    assert len(found.examples) == 0 and set(found.rates["slice"]) == {"all"}
    assert found.metrics["classifier/hidden (true)/worst group"]["value"] > 0.9
    with pytest.raises(UserError, match="no slice was confirmed"):
        mend.mend(data.train, data.validation, data.test, found.findings, options)


def test_columns_mend_without_being_asked_for_and_extremes_and_heads_are_options(whole):
    data, _ = whole
    parts = [part._replace(vectors=None) for part in (data.train, data.validation, data.test)]
    for place in (1, 2):  # a number that says the same
        columns = parts[place].columns
        number = columns["hidden"] * 2.5 + 0.1 * (np.arange(len(columns)) % 5)
        parts[place] = parts[place]._replace(columns=columns.assign(number=number))
    options = Options(threshold=0.5, resamples=100, draws=1, heads=1, cs=(0.1,))
    findings = find(None, parts[1], options=options)
    verdicts = findings.tests.groupby("hypothesis")["verdict"].agg(set)
    assert findings.slices == ("hidden=0",) and verdicts["high number"] == {"like a surer slice"}
    findings = findings._replace(slices=("hidden=0", "high number"))
    repaired = mend.mend(None, *parts[1:], findings, options)
    assert repaired.names == ("hidden=0",) and "erm" not in repaired.heads and DFR not in repaired.heads
    assert "the 1 surest are" in repaired.notes[0]
    np.testing.assert_allclose(repaired.scores[REPAIRED], repaired.scores[MEAN_HEAD])
    few = mend.mend(None, *parts[1:], findings, options._replace(extremes=20))
    assert not np.allclose(few.heads[MEAN_HEAD].weights, repaired.heads[MEAN_HEAD].weights)


def test_an_attribute_that_is_not_known_is_an_error(whole):
    data, _ = whole
    with pytest.raises(UserError, match="known='marker' is no column of the metadata: hidden"):
        mend.known(data.validation, "marker")
    columns = pd.DataFrame({"marker": ["1", "yes"]})
    with pytest.raises(UserError, match="should hold 1 and 0; it holds 1, yes"):
        mend.known(data.validation._replace(columns=columns), "marker")
