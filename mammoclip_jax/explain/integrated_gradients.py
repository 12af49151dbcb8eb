"""Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def integrated_gradients(
    subject, pixels, direction, stage: str, *, steps: int = 32, baseline: float = 0.0
) -> Float[Array, "H W"]:
    """What each pixel adds to the score on the straight way from an even image to this one (eq. 1).

    The values of the network's input are what is varied, behind the stretch of grey values, and its channels are
    added up. The integral is taken by Gauss and Legendre's rule. The map sums to score(image) - score(baseline).

    Args:
        steps: points of the integral; each costs a forward and a backward pass.
        baseline: grey value from 0, the black of the background, to 1.
    """
    places, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    points = jnp.asarray(np.stack([(places + 1) / 2, weights / 2], axis=1), pixels.dtype)
    start = jnp.full_like(pixels, subject.grey(baseline))
    slope = jax.grad(lambda x: subject.scores(x, direction)[0])

    def add(total, point):
        return total + point[1] * slope(start + point[0] * (pixels - start)), None

    mean_slope, _ = jax.lax.scan(add, jnp.zeros_like(pixels), points)
    return ((pixels - start) * mean_slope).sum(-1)[0]
