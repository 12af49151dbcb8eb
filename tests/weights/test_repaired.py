"""A classifier with another last layer for one label."""

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.heads import HEAD
from mammoclip_jax.weights import repaired

META = {"config": {"model": {"labels": ["other", "mass"]}}}
VARIABLES = {
    "params": {HEAD: {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(2, np.float32)}},
    "batch_stats": {},
}


def test_only_the_labels_own_column_changes():
    made = repaired.with_head(VARIABLES, META, "mass", np.array([7.0, 8.0, 9.0]), -2.0)
    head = made["params"][HEAD]
    np.testing.assert_array_equal(head["kernel"], [[0, 7], [2, 8], [4, 9]])
    np.testing.assert_array_equal(head["bias"], [1, -2])
    assert head["kernel"].dtype == np.float32 and VARIABLES["params"][HEAD]["kernel"][0, 1] == 1


def test_a_head_of_another_model_is_refused():
    with pytest.raises(UserError, match="no label 'cancer', only other, mass"):
        repaired.with_head(VARIABLES, META, "cancer", np.zeros(3), 0.0)
    with pytest.raises(UserError, match="has 3 features, the repaired head 4"):
        repaired.with_head(VARIABLES, META, "mass", np.zeros(4), 0.0)


def test_terms_of_both_models_are_asked():
    free, bound = ({"licences": [{"weights": "w", "licence": name}], "data": {}} for name in ("mit", "mama"))
    assert repaired.check(free, free) == [] == repaired.check(free, None)
    with pytest.raises(UserError, match="exporting this model"):
        repaired.check(free, bound)
    (record,) = repaired.check(free, bound, "permission of A. Author")
    assert record["action"] == "export" and record["override"] == "permission of A. Author"
