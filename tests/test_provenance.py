"""Who a model was trained on: digests that are the same for a patient, and say nothing of one."""

from types import SimpleNamespace

import pandas as pd
import pytest

from mammoclip_jax import provenance


def dataset(patients, splits, name="films", public=True):
    index = pd.DataFrame({"dataset": name, "patient": patients, "split": splits})
    return SimpleNamespace(info={"public_ids": public}, index=index)


def test_the_training_part_and_what_came_before_are_on_record_once():
    films = dataset(["a", "a", "b", "c", "d"], ["train", "train", "val", "train", "test"])
    a, _, b, c, d = provenance.patients(films, films.index).tolist()
    record = provenance.trained_on([films])
    assert provenance.patients_in(record).tolist() == sorted([a, c])
    more = provenance.trained_on([dataset(["b", "c"], "train")], record, None, "")
    assert provenance.patients_in(more).tolist() == sorted([a, b, c]) and len({a, b, c, d}) == 4
    assert provenance.patients_in(provenance.trained_on([dataset(["d"], "test")])).size == 0


@pytest.mark.parametrize("public, same", [(True, False), (False, True)])
def test_private_patients_are_known_again_in_another_data_set(public, same):
    """Their keys are keyed hashes; of public data sets "1" is another patient in each."""
    one, two = (dataset(["1"], "train", name, public) for name in ("films", "more"))
    assert (provenance.trained_on([one]) == provenance.trained_on([two])) == same
