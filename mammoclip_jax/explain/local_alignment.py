"""Sentence to patch similarity in the space of the local head (MaMA, Du et al. 2024, arXiv:2409.18119)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

LOWEST = -1.0  # that a cosine can be


def local_alignment(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """The cosine of each patch's vector to the sentence's, as the loss of that name compares them.

    The vectors are those of the head that sees the stage, in evaluation mode. A patch that the head leaves out (`lit`)
    has the lowest value. A direction that is the mean of several sentences gives the mean of their cosines.
    """
    vectors, there = subject.patches(pixels, stage)
    return jnp.where(there[0], jnp.dot(vectors[0], direction, precision="highest"), LOWEST)
