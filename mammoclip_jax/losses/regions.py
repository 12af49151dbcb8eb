"""Regions of images and the concepts that a teacher sees in them (RegionCLIP, Zhong et al. 2022, arXiv:2112.09106).

The teacher's cosines say which concept a region shows; concepts that are not allowed, for what is known of the image
denies them, get nothing. So a region whose concept is known is one with a single concept allowed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.losses.contrastive import Contrast, mil_nce
from mammoclip_jax.losses.objectives import LOWEST, unit
from mammoclip_jax.types import Batch, Embeddings

NEEDS, READS = ("{regions}/vectors", "{regions}/mask", "concept/vectors"), ("region_allowed", "region_cosines")


class Pseudo(NamedTuple):
    """What a teacher sees in N regions, of C concepts."""

    log_probabilities: Float[Array, "N C"]  # LOWEST for concepts that are not allowed
    labels: Int[Array, " N"]  # int32, the likeliest concept, -1 where none is likely enough


def pseudo_labels(
    cosines: Float[Array, "N C"], allowed: Bool[Array, "N C"], *, temperature: float = 0.01, threshold: float = 0.1
) -> Pseudo:
    """softmax(cosines / temperature) over the allowed concepts, and its highest where that is above the threshold.

    RegionCLIP's clip_rcnn.py:637-661, but for the concepts that are not allowed, and that a batch in which no region
    passes has no labels (there, all regions keep theirs). A region without an allowed concept has none. No gradient.
    """
    cosines = jax.lax.stop_gradient(cosines.astype(jnp.promote_types(cosines.dtype, jnp.float32)))
    log_probabilities = jax.nn.log_softmax(jnp.where(allowed, cosines / temperature, LOWEST), axis=1)
    sure = allowed.any(axis=1) & (jnp.exp(log_probabilities.max(axis=1)) > threshold)
    best = log_probabilities.argmax(axis=1).astype(jnp.int32)
    return Pseudo(jnp.where(allowed, log_probabilities, LOWEST), jnp.where(sure, best, -1))


def distil(
    regions: Float[Array, "N D"],
    concepts: Float[Array, "C D"],
    log_probabilities: Float[Array, "N C"],
    mask: Bool[Array, " N"],
    *,
    temperature: float = 0.01,
) -> Float[Array, ""]:
    """KL(q || p), the mean over the regions of the mask: q the teacher's, p = softmax(cos(region, concept) / temperature).

    RegionCLIP's L_dist (clip_rcnn.py:594). Both are logarithms of a softmax, computed as such: the released logarithm of
    a softmax is NaN in fp32 where cosines are more than 1.04 apart at a temperature of .01. 0 without any region.
    """
    cosines = jnp.matmul(unit(regions), unit(concepts).T, precision="highest")
    log_student = jax.nn.log_softmax(cosines / temperature, axis=1)
    log_teacher = jax.lax.stop_gradient(log_probabilities)
    divergence = (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(axis=1)
    return jnp.where(mask, divergence, 0).sum() / jnp.maximum(mask.sum(), 1)


def region_contrast(
    regions: Float[Array, "N D"],
    concepts: Float[Array, "C D"],
    labels: Int[Array, " N"],
    *,
    temperature: float = 0.01,
    form: str = "auto",
    mesh=None,
    **layout,
) -> Contrast:
    """RegionCLIP's L_cntrst over the regions that have a label (0 to C - 1, else -1), and its other direction.

    Each region against the concepts of all regions, -log sum_{k: y_k = y_i} softmax_k(cos(r_i, c_{y_k}) / temperature):
    the sum over the positives stands inside the logarithm (`mil_nce`). Forward is the released loss; backward, each
    region's concept against all regions. Over the global batch, where the original has a device's own regions alone.
    """
    keys = unit(concepts)[labels]
    scale = jnp.asarray(1 / temperature, keys.dtype)
    return mil_nce(unit(regions), keys, scale, labels, mask=labels >= 0, form=form, mesh=mesh, **layout)


def distillation(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    regions: str = "regions",
    temperature: float = 0.01,
    teacher_temperature: float = 0.01,
    threshold: float = 0.1,
):
    """L_dist of `distil` over the regions of the global batch that the teacher is sure of (`pseudo_labels`).

    Args:
        regions: the head that makes the vectors [B V R D] and the mask [B V R] of the regions.
        temperature: of the student.
        teacher_temperature, threshold: see `pseudo_labels`.
    """
    vectors, mask, concepts, cosines, allowed = _parts(embeddings, batch, regions)
    seen = pseudo_labels(cosines, allowed, temperature=teacher_temperature, threshold=threshold)
    sure = mask & (seen.labels >= 0)
    loss = distil(vectors, concepts, seen.log_probabilities, sure, temperature=temperature)
    return loss, {"regions": sure.sum(dtype=loss.dtype)}


def region_concept(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    regions: str = "regions",
    temperature: float = 0.01,
    teacher_temperature: float = 0.01,
    threshold: float = 0.1,
    symmetric: bool = True,
    form: str = "auto",
):
    """L_cntrst of `region_contrast` over the regions of the global batch that the teacher is sure of.

    Args:
        symmetric: the mean of both directions; else that of the regions alone, as released.
        form: losses/forms.py.
        regions, temperature, teacher_temperature, threshold: see `distillation`.
    """
    vectors, mask, concepts, cosines, allowed = _parts(embeddings, batch, regions)
    seen = pseudo_labels(cosines, allowed, temperature=teacher_temperature, threshold=threshold)
    labels = jnp.where(mask, seen.labels, -1)
    contrast = region_contrast(vectors, concepts, labels, temperature=temperature, form=form, mesh=mesh)
    metrics = {
        "region_to_concept": contrast.forward,
        "concept_to_region": contrast.backward,
        "accuracy": contrast.accuracy,
        "regions": (labels >= 0).sum(dtype=contrast.forward.dtype),
    }
    return (contrast.forward + contrast.backward) / 2 if symmetric else contrast.forward, metrics


distillation.needs = region_concept.needs = NEEDS
distillation.reads = region_concept.reads = READS


def _parts(embeddings: Embeddings, batch: Batch, regions: str):
    """What the terms compare; breasts, views and regions are one axis. A row that only fills up a batch has no regions."""
    vectors, mask, concepts = (embeddings.named[name.format(regions=regions)] for name in NEEDS)
    cosines, allowed, axes = batch["region_cosines"], batch["region_allowed"], mask.ndim
    vectors, mask, cosines, allowed = (x.reshape(-1, *x.shape[axes:]) for x in (vectors, mask, cosines, allowed))
    return vectors, mask, concepts, cosines, allowed
