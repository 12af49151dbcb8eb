"""Hypotheses: pairs of prompts, columns with unknown values, and what of two that say the same."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import hypotheses
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.evaluation.slices.projection import Projector

VECTORS = {"a": [3.0, 0], "b": [0, 2.0], "not a": [-1.0, 0], "c": [0, -4.0]}
embed = lambda texts: np.array([VECTORS[text] for text in texts])
PROJECTOR = Projector(np.array([[1.0, 0, 2], [0, 1, 0]]), np.array([0.5, -1]))
FEATURES = np.random.default_rng(0).normal(size=(4, 3))


def test_a_score_is_that_of_the_positive_minus_that_of_the_negative_prompts_by_a_loop():
    made = [Hypothesis("x", ("a", "b"), ("not a", "c")), Hypothesis("y", ("b",))]
    toward = hypotheses.directions(made, embed)
    found = hypotheses.scores(made, toward, PROJECTOR, FEATURES)
    for row, features in enumerate(FEATURES):
        projected = PROJECTOR.weights @ features + PROJECTOR.bias
        for column, one in enumerate(made):
            value = 0.0
            for sign, prompts in ((1, one.positive), (-1, one.negative)):
                if prompts:
                    mean = np.mean([VECTORS[text] for text in prompts], axis=0)
                    value += sign * projected @ (mean / np.linalg.norm(mean))
            assert found[row, column] == pytest.approx(value)


def test_a_column_knows_has_not_or_does_not_know():
    columns = pd.DataFrame({"vendor": ["GE", "Hologic", "unknown", ""], "age": [50, np.nan, 71.0, 40]})
    made = [Hypothesis("GE", column="vendor", value="GE"), Hypothesis("old", column="age")]
    found = hypotheses.scores(made, np.zeros((2, 0)), None, FEATURES, columns)
    np.testing.assert_array_equal(found, [[1, 50], [0, np.nan], [np.nan, 71], [np.nan, 40]])
    assert made[1].of_numbers and not made[0].of_numbers
    codes = pd.DataFrame({"machine": pd.array([49, None, 170, 49], dtype="Int64"), "site": [1.0, np.nan, 2, 1]})
    made = [Hypothesis("m", column="machine", value="49"), Hypothesis("s", column="site", value="1")]
    found = hypotheses.scores(made, np.zeros((2, 0)), None, FEATURES, codes)
    np.testing.assert_array_equal(found, [[1, 1], [np.nan, np.nan], [0, 0], [1, 1]])


def test_a_phrase_becomes_five_sentences_on_either_side():
    made = hypotheses.of_phrase("surgical clip", "lexicon")
    assert made.positive[0] == "There is surgical clip." and made.negative[0] == "There is no surgical clip."
    assert len(made.positive) == len(made.negative) == 5 and made.positive[4] == "Surgical clip is seen."
    against = hypotheses.of_phrase("left breast", "lexicon", ("right breast",))
    assert "Mammogram with right breast." in against.negative and not any("no " in text for text in against.negative)


def test_of_hypotheses_of_one_name_or_one_direction_the_first_is_kept():
    made = [
        Hypothesis("Mass", ("a",)),
        Hypothesis("mass", ("b",)),
        Hypothesis("other", ("c",)),
        Hypothesis("GE", column="vendor", value="GE"),
        Hypothesis("again", ("a",), ()),
        Hypothesis("Hologic", column="vendor", value="Hologic"),
    ]
    toward = hypotheses.directions(made, embed)
    assert hypotheses.distinct(made, toward) == [0, 2, 3, 5]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="2 hypotheses are called 'x'"):
        hypotheses.check([Hypothesis("x", ("a",)), Hypothesis("x", ("b",))])
    for wrong in (Hypothesis("x"), Hypothesis("x", ("a",), column="age")):
        with pytest.raises(UserError, match="needs prompts"):
            hypotheses.check([wrong])
    with pytest.raises(UserError, match="no projection"):
        hypotheses.scores([Hypothesis("x", ("a",))], np.ones((1, 2)), None, FEATURES)
    columns = pd.DataFrame({"vendor": ["GE"] * 4})
    with pytest.raises(UserError, match="needs the column 'age'; there are: vendor"):
        hypotheses.scores([Hypothesis("x", column="age")], np.zeros((1, 0)), None, FEATURES, columns)
    with pytest.raises(UserError, match="does not hold numbers"):
        hypotheses.scores([Hypothesis("x", column="vendor")], np.zeros((1, 0)), None, FEATURES, columns)
