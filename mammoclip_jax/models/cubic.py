"""Bicubic resampling as PyTorch does it."""

import numpy as np
from jaxtyping import Float


def cubic_matrix(old: int, new: int, antialias: bool) -> Float[np.ndarray, "new old"]:
    """Bicubic resampling of `old` values to `new` as a matrix, as in `torch.nn.functional.interpolate`.

    With align_corners=False. Without antialiasing torch's kernel has a = -0.75 and repeats the values at the border;
    with it a = -0.5, the kernel is widened by old / new where that exceeds 1, and cut and normalised at the border.
    """
    a, scale = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new
        first = int(np.floor(centre - 2 * scale + 0.5))
        taps = np.arange(first, int(np.floor(centre + 2 * scale + 0.5)) + 1)
        if antialias:
            taps = taps[(taps >= 0) & (taps < old)]
        weights = _cubic((taps + 0.5 - centre) / scale, a)
        np.add.at(matrix[row], np.clip(taps, 0, old - 1), weights / weights.sum())
    return matrix


def _cubic(x, a):
    """Keys' kernel (1981): 1 at 0, 0 at every other whole number and from 2 on."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
