"""A planted shortcut is named and confirmed in both classes; where there is none, hardly anything is found."""

import numpy as np
import pandas as pd
import pytest
from planted_slices import PLANTED, planted, shuffled, texts
from threadpoolctl import threadpool_limits

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import run
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.evaluation.slices.language_model import LanguageModel
from mammoclip_jax.evaluation.slices.phrases import Phrases
from mammoclip_jax.evaluation.slices.run import Options, find

OPTIONS = Options(leave_out=("hidden",))
WITHOUT_INTERVALS = OPTIONS._replace(resamples=0)


@pytest.fixture(scope="module")
def read():
    return Phrases(texts(), leave_out=("cancer",))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):  # many small products
        yield


def test_the_planted_attribute_is_first_in_both_classes_in_19_of_20(read):
    first = 0
    for seed in range(20):
        data = planted(seed)
        found = find(data.train, data.validation, data.bank, data.embed, phrases=read, options=WITHOUT_INTERVALS)
        best = found.tests.groupby("class").first()
        first += bool((best["hypothesis"] == PLANTED).all() and (best["q"] < 0.01).all())
        if first == seed + 1:  # what the class 0 has and the class 1 lacks
            assert best["worse"].tolist() == ["present", "absent"]
    assert first >= 19


def runs_that_find(read, count: int) -> int:
    data = planted(0)
    return sum(
        bool((found.tests["q"] < OPTIONS.level).any())
        for found in (
            find(
                data.train,
                shuffled(data.validation, seed),
                data.bank,
                data.embed,
                phrases=read,
                options=WITHOUT_INTERVALS,
            )
            for seed in range(count)
        )
    )


def test_of_25_shuffled_runs_few_find_anything(read):
    assert runs_that_find(read, 25) <= 4


@pytest.mark.slow
def test_of_200_shuffled_runs_at_most_15_find_anything(read):
    assert runs_that_find(read, 200) <= 15


def test_what_goes_with_the_class_alone_is_no_slice_unless_the_features_that_decide_also_say_who_is_in_it(read):
    data = planted(7)
    rng = np.random.default_rng(0)

    def with_a_companion(part):  # an attribute that mostly comes with the class, and has no part in any error
        there = np.where(rng.random(len(part.truth)) < 0.85, part.truth, 1 - part.truth)
        strength = 0.7 * (2.0 * part.truth - 1) + rng.normal(size=len(part.truth))  # all that the classifier sees
        vectors = (2.0 * there[:, None] - 1) * data.directions[0] + rng.normal(size=part.vectors.shape) * 0.05
        features = np.c_[strength, rng.normal(size=(len(strength), 3))]
        return part._replace(features=features, score=strength, vectors=vectors, columns=None)

    parts = [with_a_companion(part) for part in (data.train, data.validation)]
    options = WITHOUT_INTERVALS._replace(least_r2=0.1)
    by_image, by_feature = (
        find(*parts, data.bank, data.embed, phrases=read, options=options._replace(scored_by=by)).tests
        for by in (run.IMAGES, run.PROJECTION)
    )
    assert not (by_image["q"] < 0.05).any()
    assert (by_feature.set_index(["hypothesis", "class"]).loc[PLANTED, "q"] < 1e-6).all()


def test_what_is_found_says_how(read):
    data = planted(1)
    found = find(data.train, data.validation, data.bank, data.embed, phrases=read, options=OPTIONS)
    assert found.slices[0] == PLANTED and found.projector.r2 > 0.6
    ends = found.retrieved.groupby(["class", "end"])
    assert set(ends.groups) == {(0, "right"), (0, "wrong"), (1, "right"), (1, "wrong")}
    # In class 0 the right have none of it: their sentences deny it.
    top = ends["sentence"].first()
    assert "calcification" in top[0, "right"] and top[0, "right"].startswith(("No", "Without"))
    assert "calcification" in top[1, "right"] and top[1, "right"].startswith("There is")
    denied = found.phrases[found.phrases["hypothesis"] == PLANTED].set_index(["class", "end"])["denied"]
    assert denied[0, "right"] and not denied[0, "wrong"] and not denied[1, "right"] and denied[1, "wrong"]
    patients = data.validation.patients
    assert not set(patients[found.discover]) & set(patients[~found.discover])
    again = find(data.train, data.validation, data.bank, data.embed, options=OPTIONS)
    pd.testing.assert_frame_equal(found.tests, again.tests)


def test_what_the_confirming_patients_show_changes_no_hypothesis(read):
    data = planted(2)
    found = find(data.train, data.validation, data.bank, data.embed, phrases=read, options=WITHOUT_INTERVALS)
    half = data.validation.take(found.discover)
    order = np.arange(len(found.discover))
    order[~found.discover] = np.random.default_rng(0).permutation(order[~found.discover])
    mixed = data.validation._replace(features=data.validation.features[order], vectors=data.validation.vectors[order])
    fixed = WITHOUT_INTERVALS._replace(threshold=found.threshold)
    other = find(data.train, mixed, data.bank, data.embed, phrases=read, options=fixed)
    assert other.frozen == found.frozen and not other.tests["p"].equals(found.tests["p"])
    assert set(half.patients) == set(data.validation.patients[found.discover])


def test_columns_alone_need_no_language_space():
    data = planted(3)
    part = data.validation._replace(vectors=None)
    found = find(None, part, options=Options())
    assert found.projector is None and found.slices == ("hidden=0",)
    assert len(found.retrieved) == 0 and len(run.examples(found, part)) == 24
    nothing = find(None, part, options=Options(known="hidden"))
    assert nothing.slices == () and len(nothing.tests) == 0


def test_a_hypothesis_of_ones_own_and_a_language_models_are_tested_too(read):
    data = planted(4)
    answer = (
        '{"hypotheses": [{"name": "bright specks", "positive": ["Calcification."], "negative": ["No calcification."]}]}'
    )
    asked = []
    model = LanguageModel("m", lambda prompt: asked.append(prompt) or answer, False)
    given = [Hypothesis("device", ("an implant is seen",), ("no implant",), source="given")]
    found = find(
        data.train,
        data.validation,
        data.bank,
        data.embed,
        phrases=read,
        given=given,
        model=model,
        options=WITHOUT_INTERVALS,
    )
    names = [one.hypothesis.name for one in found.frozen]
    assert names[0] == "device" and "implant" not in names  # the same direction
    assert "bright specks" not in names and len(asked) == 2  # so are these; a prompt a class
    assert "- no calcification" in asked[0] and not any(text in asked[0] for text in data.bank.texts)


def test_slices_and_examples_by_a_loop(read):
    data = planted(5)
    found = find(data.train, data.validation, data.bank, data.embed, phrases=read, options=OPTIONS)
    inside = run.members(found, data.test)
    assert f"{PLANTED} present, class 0" in inside and f"{PLANTED} absent, class 1" in inside
    right, _ = run.decided(data.test, found.threshold)
    score = found.scores(data.test, [PLANTED])[:, 0]
    shown = run.examples(found, data.test, count=4)
    shown = shown[shown["hypothesis"] == PLANTED]
    for (label, good), rows in shown.groupby(["class", "right"]):
        member = inside[f"{PLANTED} {'present' if label == 0 else 'absent'}, class {label}"]
        chosen = [i for i in range(len(score)) if member[i] and data.test.truth[i] == label and right[i] == good]
        chosen.sort(key=lambda i: score[i] * (1 if label else -1))
        assert rows["place"].tolist() == chosen[:4]


def test_what_cannot_be_looked_at_is_an_error():
    data = planted(6, (300, 300, 10))
    with pytest.raises(UserError, match="nothing to look at"):
        find(data.train, data.validation._replace(columns=None))
    with pytest.raises(UserError, match="vectors of the dual encoder"):
        find(None, data.validation, data.bank, data.embed)
    with pytest.raises(UserError, match="give `embed`"):
        find(data.train, data.validation, data.bank)
    unlike = data.train._replace(vectors=np.random.default_rng(0).permutation(data.train.vectors))
    with pytest.raises(UserError, match="do not reach the space"):
        find(unlike, data.validation, data.bank, data.embed)
    with pytest.raises(UserError, match="images of both classes"):
        find(None, data.validation._replace(truth=np.ones(300, int)))
    with pytest.raises(UserError, match="has 299 and 300 rows"):
        find(None, data.validation._replace(score=data.validation.score[1:]))
    with pytest.raises(UserError, match="no option scored_by 'image'. Did you mean"):
        find(data.train, data.validation, data.bank, data.embed, options=Options(scored_by="image"))
    with pytest.raises(UserError, match="1 scores of the validation part are not finite"):
        find(None, data.validation._replace(score=np.r_[np.nan, data.validation.score[1:]]))
