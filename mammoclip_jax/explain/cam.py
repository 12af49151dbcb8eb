"""Class activation maps: features F [h w c] of a stage, weighted by the gradient G [h w c] of the score by them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ROUNDING = 1e-5  # of the size of what is added up: a sum below it is rounding


def grad_cam(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """sum_c a_c F_c, a_c the mean of G_c over the map (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2)."""
    features, gradient = features_and_gradient(subject, pixels, direction, stage)
    return _weighted(features, gradient.mean(axis=(0, 1)))


def hires_cam(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """sum_c G_c F_c, which keeps where the gradient is (Draelos and Carin 2020, arXiv:2011.08891, eq. 4).

    It is 0 where only a LayerNorm sees the stage, which no scale of F changes: in a transformer with the pooling "cls"
    before the last block.
    """
    return _weighted(*features_and_gradient(subject, pixels, direction, stage))


def grad_cam_pp(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """sum_c w_c F_c, w_c = sum_ij alpha_cij relu(G_cij) (Chattopadhay et al. 2018, arXiv:1710.11063, eq. 10 and 19).

    alpha = G^2 / (2 G^2 + G^3 sum_ij F), which holds for the exponential of the score where the network above the stage
    is piecewise linear; the exponential itself scales the whole map and is left out. It is computed as
    1 / (2 + G sum_ij F): squares and cubes of the gradients of a large map would be lost.
    """
    features, gradient = features_and_gradient(subject, pixels, direction, stage)
    below = 2 + gradient * features.sum(axis=(0, 1))
    weights = jax.nn.relu(gradient) / jnp.where(below == 0, 1, below)
    return _weighted(features, weights.sum(axis=(0, 1)))


def features_and_gradient(
    subject, pixels, direction, stage: str
) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"]]:
    """The stage's map of the one image, and the gradient of its score by it."""
    shape = jax.eval_shape(lambda: subject.encode(pixels)[1][stage]).shape

    def score(offset):
        vectors, stages = subject.encode(pixels, {stage: offset})
        return vectors[0] @ direction, stages[stage]

    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape, pixels.dtype))
    return features[0], gradient[0]


def _weighted(features, weights):
    """sum_c w_c F_c; 0 where the terms cancel, so that rounding is not stretched into a map."""
    terms = features * weights
    total = terms.sum(-1)
    return jnp.where(jnp.abs(total) > _ROUNDING * jnp.abs(terms).sum(-1), total, 0.0)
