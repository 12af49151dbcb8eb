"""The loss of Mammo-FActOR (Ghosh et al. 2024, arXiv:2405.12255, section 2.2): of each attribute, images that show it against
images that do not.

ViLLA's stage 1 (Varma et al. 2023, arXiv:2308.11194). Both released codes multiply the entries that do not count by 0 before
the exponential, so that each adds 1 to the denominator, and add up exponentials, which overflow in fp32 at the paper's
temperature: neither is imitated.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mammoclip_jax.losses.objectives import LOWEST


def attribute_contrast(
    cosines: Float[Array, "N A"], target: Float[Array, "N A"], known: Bool[Array, "N A"], *, temperature: float = 0.007
) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """Mean over all pairs (image i, attribute k) that are positive of -log e^s_ik / (e^s_ik + sum_{j: y_jk = 0} e^s_jk).

    s = cosines / temperature, j goes over the whole global batch, and the other positives of k are in no denominator. An
    image of which k is not known is neither. A positive without any negative adds 0 to the sum and counts in the mean; the
    loss is 0 without positives.

    Args:
        cosines: of the images to the attributes: their highest channel's.
        target: 1 or 0, whatever where `known` is False, as of images that only fill up the batch.

    Returns:
        The loss, and "accuracy": the share of the positives above every negative.
    """
    scores = cosines.astype(jnp.promote_types(cosines.dtype, jnp.float32)) / temperature
    positive, negative = known & (target > 0.5), known & (target <= 0.5)
    against = jnp.where(negative, scores, LOWEST)
    among = jax.nn.logsumexp(against, axis=0)  # LOWEST, about, without a negative
    scores = jnp.where(positive, scores, 0)  # not by a product: what does not count may be of any size
    terms = jnp.where(positive, jax.nn.softplus(among - scores), 0)
    count = jnp.maximum(positive.sum(), 1)
    won = positive & (scores > against.max(axis=0))
    return terms.sum() / count, {"accuracy": won.sum() / count}
