"""Parts of masks: their boxes, scores, bounds and labels."""

import numpy as np
import pytest

from mammoclip_jax.data.regions.components import components, of_findings
from mammoclip_jax.errors import UserError


@pytest.fixture
def masks():
    masks = np.zeros((40, 30, 2), bool)
    masks[2:6, 3:8, 0] = True
    masks[6:8, 8:10, 0] = True  # over a corner
    masks[20:30, 1:4, 0] = True
    masks[35, 25, 1] = True  # a speck
    masks[10:15, 10:15, 1] = True
    return masks


def test_each_part_is_a_box_with_the_mean_score_of_its_pixels(masks):
    scores = np.full((40, 30, 2), 0.9)
    scores[2:6, 3:8, 0], scores[6:8, 8:10, 0], scores[20:30, 1:4, 0] = 0.5, 0.8, 0.6
    found = components(masks, ("mass", "calcification"), scores=scores, least=0.05)
    assert found.boxes.tolist() == [[10, 10, 15, 15], [1, 20, 4, 30], [3, 2, 10, 8]]
    assert list(found.labels) == ["calcification", "mass", "mass"]
    np.testing.assert_allclose(found.scores, [0.9, 0.6, (20 * 0.5 + 4 * 0.8) / 24], rtol=1e-6)
    assert found.dropped == {"too small or too large": 1, "more than the limit": 0}


def test_the_bounds_are_kept_and_counted(masks):
    found = components(masks, ("mass", "calcification"), least=0, most=0.13, limit=1)
    assert found.boxes.tolist() == [[10, 10, 15, 15]]
    assert found.scores.tolist() == [1] and found.dropped == {"too small or too large": 2, "more than the limit": 1}
    assert not len(components(np.zeros_like(masks), ("mass", "calcification")).boxes)


def test_findings_are_chosen_unless_others_are_named():
    known = ("breast", "mass", "pectoral_muscle", "calcification")
    assert of_findings(known, (), "masks") == ("mass", "calcification")
    assert of_findings(known, "breast,mass", "masks") == ("breast", "mass")
    with pytest.raises(UserError, match="no channel of the masks is a finding"):
        of_findings(("breast",), (), "masks")
    with pytest.raises(UserError, match="Did you mean 'breast'"):
        of_findings(known, ("brest",), "masks")
