"""Mammo-FActOR (Ghosh et al. 2024, arXiv:2405.12255, section 2.2): the channels of a map, as far as they show an attribute."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def factor(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """sum_c s_c F_c, the scores s of the channels F_c of unit length over the channels, with their sign.

    A channel's score is the cosine of its adapter's vector to the attribute's (of a direction that weighs several
    attributes, the weighted sum of their cosines); a channel that speaks against it takes away. The unit length is that
    of the authors' Classifiers/experiments.py:309-324; how they made the heat map of the scores is not released.
    """
    features = subject.encode(pixels)[1][stage][0]
    scores = subject.channel_scores(features, stage, direction)
    length = jnp.linalg.norm(scores)
    return jnp.dot(features, scores / jnp.where(length > 0, length, 1.0), precision="highest")
