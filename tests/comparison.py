"""How features are compared with those of the originals."""

import numpy as np


def close(ours, theirs, tolerance=1e-4):
    """Largest difference relative to the largest value: float32 rounding, unless told otherwise."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
