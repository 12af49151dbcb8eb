"""RetinaNet's loss (Lin et al. 2017, arXiv:1708.02002), matched as by Mammo-CLIP (Detectors/retinanet/losses.py)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.boxes import encode, iou
from mammoclip_jax.names import check_name

BACKGROUND, IGNORED = -1, -2
POSITIVE, NEGATIVE = 0.5, 0.4  # IoU from which an anchor is a box's, and below which it is background
KNEE = 1 / 9  # of the smooth L1, between its square and its straight part
WITHOUT_BOXES = ("count", "zero")


def retinanet(
    logits: Float[Array, "N A K"],
    deltas: Float[Array, "N A 4"],
    boxes: Float[Array, "N M 4"],
    classes: Int[Array, "N M"],
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    without_boxes: str = "count",
    force_match: bool = False,
    mask: Bool[Array, " N"] | None = None,
    known: Bool[Array, "N K"] | None = None,
) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """Mean over the images of focal loss + smooth L1, in float32.

    Of each image: the focal losses of all anchors that `match` does not ignore, summed and divided by the number of
    positive ones (at least 1); and the mean smooth L1 over the four regressions of the positive ones. Published as
    alpha=.25, gamma=2, without_boxes="zero"; there the probabilities were cut to [1e-4, 1 - 1e-4] besides, so that
    sure anchors gave no gradient.

    Args:
        boxes: (left, top, right, bottom) in pixels of the network's input, as the anchors.
        classes: int32; -1 where there is no box. A box of several classes stands there once for each.
        alpha: weight of an anchor that is of a class; 1 - alpha of one that is not.
        without_boxes: whether images without any box "count", by the focal loss of background alone, or are "zero", as
            published; they are images of the mean in both cases.
        mask: False for images that only fill up the batch: they never count.
        known: False where it is not known whether an image shows a class: its anchors teach nothing of that class.

    Returns:
        The loss, and means over the images: "classification", "box", "positive_anchors" and "unmatched", the share of
        boxes that no anchor is matched to.

    Raises:
        UserError: `without_boxes` is none of `WITHOUT_BOXES`.
    """
    check_name(without_boxes, WITHOUT_BOXES, "treatment of images without boxes")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits, deltas, boxes, anchors = (jnp.asarray(x, dtype) for x in (logits, deltas, boxes, anchors))
    mask = jnp.ones(len(logits), bool) if mask is None else mask
    valid = classes >= 0
    matched = jax.vmap(lambda boxes, valid: match(anchors, boxes, valid, force_match=force_match))(boxes, valid)
    positive, index = matched >= 0, jnp.maximum(matched, 0)
    positives = positive.sum(1)

    same = valid[:, None] & (boxes[:, :, None] == boxes[:, None]).all(-1)
    kinds = (same[..., None] & jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)[:, None]).any(2)
    targets = positive[..., None] & jnp.take_along_axis(kinds, index[..., None], axis=1)
    counts = (matched != IGNORED)[..., None]
    if known is not None:
        counts &= known[:, None]
    if without_boxes == "zero":
        counts &= valid.any(1)[:, None, None]
    losses = focal(logits, targets, alpha, gamma)
    classification = jnp.where(counts, losses, 0).sum((1, 2)) / jnp.maximum(positives, 1)

    wanted = encode(jnp.take_along_axis(boxes, index[..., None], axis=1), anchors)
    regression = jnp.where(positive[..., None], smooth_l1(deltas - wanted), 0)
    box = regression.sum((1, 2)) / jnp.maximum(4 * positives, 1)

    found = (same & (matched[..., None] == jnp.arange(boxes.shape[1])).any(1)[:, None]).any(2)
    here = mask[:, None] & valid
    images = jnp.maximum(mask.sum(), 1)
    metrics = {
        "classification": jnp.where(mask, classification, 0).sum() / images,
        "box": jnp.where(mask, box, 0).sum() / images,
        "positive_anchors": jnp.where(mask, positives, 0).sum() / images,
        "unmatched": (here & ~found).sum() / jnp.maximum(here.sum(), 1),
    }
    return metrics["classification"] + metrics["box"], metrics


def match(
    anchors: Float[Array, "A 4"], boxes: Float[Array, "M 4"], valid: Bool[Array, " M"], *, force_match: bool = False
) -> Int[Array, " A"]:
    """What each anchor is to learn: the number of its box, `BACKGROUND`, or `IGNORED`. int32.

    An anchor is the box's that it overlaps most (the first of equals), from an IoU of `POSITIVE` on; below `NEGATIVE`
    it is background, and between it is ignored.

    Args:
        valid: False where there is no box; there must be at least one place for a box.
        force_match: each box also gets the anchor that overlaps it most (the first of equals), however little; an
            anchor that is the best of several boxes goes to the one that it overlaps most.
    """
    overlap = jnp.where(valid, iou(anchors[:, None], boxes), -1.0)
    best, index = overlap.max(1), overlap.argmax(1).astype(jnp.int32)
    out = jnp.where(best >= POSITIVE, index, jnp.where(best < NEGATIVE, BACKGROUND, IGNORED))
    if force_match:
        first = jnp.arange(len(anchors))[:, None] == overlap.argmax(0)
        forced = first & valid & (overlap > 0)
        chosen = jnp.where(forced, overlap, -1.0).argmax(1).astype(jnp.int32)
        out = jnp.where(forced.any(1), chosen, out)
    return out


def focal(logits: Float[Array, "*n"], targets: Bool[Array, "*n"], alpha: float, gamma: float) -> Float[Array, "*n"]:
    """-alpha_t (1 - p_t)^gamma log p_t, where p_t is the probability of the truth (eq. 5); finite at any logit."""
    truth = jnp.where(targets, logits, -logits)  # p_t = sigmoid(truth)
    weight = jnp.where(targets, alpha, 1 - alpha)
    return weight * jnp.exp(-gamma * jax.nn.softplus(truth)) * jax.nn.softplus(-truth)


def smooth_l1(difference: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x^2 / (2 KNEE) up to the knee, |x| - KNEE / 2 beyond (Fast R-CNN, arXiv:1504.08083, eq. 3, with a knee)."""
    size = jnp.abs(difference)
    return jnp.where(size <= KNEE, difference**2 / (2 * KNEE), size - KNEE / 2)
