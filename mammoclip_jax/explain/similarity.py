"""Text-conditioned similarity: zero-shot classification of every place instead of the whole image."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def similarity(subject, pixels, direction, stage: str) -> Float[Array, "h w"]:
    """The score of each cell of the stage map, projected as the pooled vector is.

    Of a dual encoder this is the cosine to the text (as Zhou et al. 2022, arXiv:2112.01071, for CLIP); of a classifier
    the logit of each cell: with mean pooling the map of Zhou et al. 2016 (arXiv:1512.04150), whose mean is the logit.
    """
    features = subject.encode(pixels)[1][stage][0]
    return jnp.dot(subject.project(features), direction, precision="highest")
