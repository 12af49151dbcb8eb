"""Greedy non-maximum suppression of static shape: a fixed number of places, of which some hold a detection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.boxes import iou


class Detections(NamedTuple):
    """The boxes of each image by falling score; places without one come last, and hold zeros and the class -1."""

    boxes: Float[Array, "*n K 4"]
    scores: Float[Array, "*n K"]
    classes: Int[Array, "*n K"]
    valid: Bool[Array, "*n K"]


def nms(
    boxes: Float[Array, "A 4"],
    scores: Float[Array, "A C"],
    *,
    threshold: float = 0.05,
    overlap: float = 0.5,
    limit: int = 100,
    candidates: int | None = 4096,
    class_aware: bool = True,
) -> Detections:
    """The box of the highest score that is left, again and again; each strikes out those that overlap it too much.

    Of equal scores the first counts as the higher: by number of the box, then of the class.

    Args:
        scores: probabilities of the classes.
        threshold: only scores above it count.
        overlap: IoU above which a box is struck out.
        limit: boxes kept, at most.
        candidates: only so many of the highest scores are looked at; None: all. Below `limit` times the boxes of an
            object this may lose others of low scores.
        class_aware: a box strikes out those of its own class alone, and may be found for several classes. Otherwise, as
            published for Mammo-CLIP (Detectors/retinanet/detector_model.py, with candidates=None), each box is of its
            best class, and strikes out those of all.
    """
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    scores = jnp.asarray(scores, dtype)
    if class_aware:
        owners, classes = (x.ravel() for x in jnp.indices(scores.shape, jnp.int32))
        scores = scores.ravel()
    else:
        owners = jnp.arange(len(scores), dtype=jnp.int32)
        classes = scores.argmax(-1).astype(jnp.int32)
        scores = scores.max(-1)
    scores = jnp.where(scores > threshold, scores, -1)
    if candidates is not None and candidates < len(scores):
        scores, chosen = lax.top_k(scores, candidates)  # of equal ones the first come first
        owners, classes = owners[chosen], classes[chosen]
    boxes = jnp.asarray(boxes, dtype)[owners]

    def take(i, state):
        scores, kept = state
        best = scores.argmax()
        valid = scores[best] >= 0
        place = Detections(boxes[best], scores[best], classes[best], valid)
        nothing = Detections(jnp.zeros_like(place.boxes), jnp.zeros_like(place.scores), jnp.int32(-1), False)
        place = jax.tree.map(lambda x, y: jnp.where(valid, x, y), place, nothing)
        kept = jax.tree.map(lambda x, y: x.at[i].set(y), kept, place)
        struck = iou(boxes, boxes[best]) > overlap
        if class_aware:
            struck &= classes == classes[best]
        scores = jnp.where(struck, -1, scores).at[best].set(-1)
        return scores, kept

    kept = Detections(
        jnp.zeros((limit, 4), dtype), jnp.zeros(limit, dtype), jnp.full(limit, -1, jnp.int32), jnp.zeros(limit, bool)
    )
    return lax.fori_loop(0, limit, take, (scores, kept))[1]
