"""Slices that the command `slices` found, as an entry to the exams."""

import numpy as np
import pytest
from small_set import dataset

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.members import FILE
from mammoclip_jax.viewer.error_slices import of_folder


@pytest.fixture
def out(tmp_path):
    index = dataset().index
    table = index.iloc[[3, 9, 14]][["dataset", "image"]].assign(
        part=["val", "test", "test"], truth=1, score=[0.1, 0.2, 0.9]
    )
    table = table.assign(right=[0, 0, 1], **{"mass, without clip": [1, 0, 1], "mass, density A": [0, 0, 0]})
    target = tmp_path / "results" / "phantom" / FILE
    target.parent.mkdir(parents=True)
    table.to_csv(target, index=False)
    return tmp_path


def test_a_slice_knows_its_images_and_those_decided_wrongly(out):
    (found,) = of_folder(out, dataset().index, "phantom")  # the other one has none of these images
    assert found.title == "mass, without clip"
    assert np.flatnonzero(found.inside).tolist() == [3, 14] and np.flatnonzero(found.wrong).tolist() == [3]


def test_slices_of_other_images_or_none_are_refused(out, tmp_path):
    with pytest.raises(UserError, match="of no image of vindr"):
        of_folder(out, dataset(name="vindr").index, "vindr")
    with pytest.raises(UserError, match="holds no"):
        of_folder(tmp_path / "nowhere", dataset().index, "phantom")
