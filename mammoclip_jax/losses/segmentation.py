"""Loss of masks: cross-entropy of every pixel beside the soft Dice of every channel (Milletari et al. 2016,
arXiv:1606.04797; over the whole batch, as of nnU-Net's batch Dice), where channels may be unknown of an image.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

SMOOTHING = 1.0  # pixels, above and below: a channel that is nowhere, and found nowhere, has a Dice of 1


def cross_entropy_and_dice(
    logits: Float[Array, "N H W K"],
    masks: Shaped[Array, "N H W K"],
    known: Bool[Array, "N K"],
    *,
    dice_weight: float = 1.0,
    pos_weight: Float[Array, " K"] | float = 1.0,
) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """Mean cross-entropy of the pixels of all (image, channel) pairs that are known, and `dice_weight` times 1 - Dice.

    Dice of a channel is 2 sum(p g) / (sum(p) + sum(g)) over the pixels of all images of the global batch of which it is
    known; the mean is over the channels that are known of any. Of what is not known neither value nor gradient depends.

    Args:
        masks: 0 and 1.
        pos_weight: of each channel, or of all: factor on the cross-entropy of the pixels that are in its mask. Where a
            channel fills the share s of the pixels, all others weigh (1 - s) / s times as much without it, and the
            cross-entropy teaches nothing but to say no. The mean stays over the number of pixels; Dice has no weights.
        known: False for images that only fill up the batch, too.

    Returns:
        The loss, and "cross_entropy" and "dice", the mean soft Dice.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits, truth = logits.astype(dtype), masks.astype(dtype)
    weighted = jnp.asarray(pos_weight, dtype) * truth * jax.nn.softplus(-logits) + (1 - truth) * jax.nn.softplus(logits)
    # Not by a product: what nobody knows of may be of any size.
    pixels = jnp.where(known[:, None, None], weighted, 0)
    cross_entropy = pixels.mean(axis=(1, 2)).sum() / jnp.maximum(known.sum(), 1)

    probability = jnp.where(known[:, None, None], jax.nn.sigmoid(logits), 0)
    truth = jnp.where(known[:, None, None], truth, 0)
    both, either = ((x).sum(axis=(0, 1, 2)) for x in (probability * truth, probability + truth))
    of_channel = (2 * both + SMOOTHING) / (either + SMOOTHING)
    there = known.any(axis=0)
    dice = jnp.where(there, of_channel, 0).sum() / jnp.maximum(there.sum(), 1)
    loss = cross_entropy + dice_weight * jnp.where(there.any(), 1 - dice, 0)
    return loss, {"cross_entropy": cross_entropy, "dice": dice}
