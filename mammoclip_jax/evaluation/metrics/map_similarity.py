"""How alike two maps of one image are, as in Adebayo et al. 2018, arXiv:1810.03292, section 3."""

import cv2
import numpy as np
from scipy.stats import spearmanr

_WINDOW, _DEVIATION = 11, 1.5  # of Wang et al. 2004, section III.B
_SMALL = (0.01**2, 0.03**2)  # (K1 L)^2 and (K2 L)^2 for values from 0 to L = 1


def rank_correlation(a: np.ndarray, b: np.ndarray, tissue: np.ndarray) -> float:
    """Spearman's rank correlation of two maps [H, W] from 0 to 1 over the breast; 0 where one of them is flat.

    Values that agree to five decimals share a rank, so that rounding does not order what is level.
    """
    a, b = (np.round(x[tissue].astype(np.float64), 5) for x in (a, b))
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(spearmanr(a, b).statistic)


def ssim(a: np.ndarray, b: np.ndarray, tissue: np.ndarray) -> float:
    """Structural similarity of two maps [H, W] from 0 to 1, mean over the breast.

    Wang, Bovik, Sheikh and Simoncelli 2004, Image quality assessment, eq. 13, with their Gaussian window.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(x):
        return cv2.GaussianBlur(x, (_WINDOW, _WINDOW), _DEVIATION, borderType=cv2.BORDER_REFLECT)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    values = (
        (2 * mean_a * mean_b + _SMALL[0])
        * (2 * both + _SMALL[1])
        / ((mean_a**2 + mean_b**2 + _SMALL[0]) * (var_a + var_b + _SMALL[1]))
    )
    return float(values[tissue].mean())
