import numpy as np
import pytest

from mammoclip_jax.evaluation.metrics.map_similarity import rank_correlation, ssim

RNG = np.random.default_rng(0)
A, B = RNG.permutation(640).reshape(2, 20, 16).astype(np.float32) / 640
TISSUE = np.zeros((20, 16), bool)
TISSUE[:, :9] = True


def test_rank_correlation_equals_the_correlation_of_ranks():
    ranks = [np.argsort(np.argsort(x[TISSUE])) for x in (A, B)]
    assert rank_correlation(A, B, TISSUE) == rank_correlation(A + RNG.uniform(-1e-9, 1e-9, A.shape), B, TISSUE)
    assert rank_correlation(A, B, TISSUE) == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert rank_correlation(A, A**2, TISSUE) == pytest.approx(1) == -rank_correlation(A, -A, TISSUE)
    assert rank_correlation(A, np.zeros_like(A), TISSUE) == 0


def test_ssim_equals_its_formula_pixel_by_pixel():
    """Equation 13 of the paper under its 11 x 11 Gaussian window; the border is mirrored."""
    distance = np.arange(-5, 6)
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (np.pad(x.astype(float), 5, mode="symmetric") for x in (A, B))
    values = []
    for y, x in np.argwhere(TISSUE):
        p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
        mean_p, mean_q = (window * p).sum(), (window * q).sum()
        var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
        both = (window * (p - mean_p) * (q - mean_q)).sum()
        values.append(
            (2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4) / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
        )
    assert ssim(A, B, TISSUE) == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(A, A, TISSUE) == pytest.approx(1)
