"""Symmetric local alignment of sentences and image patches (SLA; MaMA, Du et al. 2024, arXiv:2409.18119)."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from mammoclip_jax.losses import objectives
from mammoclip_jax.losses.forms import row_axes
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.losses.pairs import there
from mammoclip_jax.losses.ring import chunks, whole
from mammoclip_jax.types import Batch, Embeddings

CAPTIONS = 256  # that an image is compared with at a time
LOWEST = -2.0  # below any cosine


def local_alignment(
    embeddings: Embeddings, batch: Batch, mesh, *, head: str = "local", patches_to_sentences: bool = True
):
    """L_SLA of each slot that the head sees, their mean; the text of one caption against the images of the batch.

    CE(l A, I) + CE(l A^T, I) + CE(l B, I) + CE(l B^T, I), with A and B of `local_scores` and l the head's own factor. A
    caption without sentences, an image without patches, a row whose text is not its own and one that
    only fills up are neither query nor key.

    Args:
        head: name of the head in config.model.heads that makes the vectors, of the kind local.
        patches_to_sentences: whether B is in it; without, the text's half alone (the original without
            --symmetric_local).
    """
    patches, patch_mask, sentences, sentence_mask, scale = (embeddings.named[f"{head}/{part}"] for part in PARTS)
    own = there(batch, more=("paired",))
    losses = []
    for slot in range(patches.shape[1]):
        mine = [x[:, slot] for x in (patches, patch_mask, sentences, sentence_mask)]
        valid = mine[1].any(axis=1) & mine[3].any(axis=1) & (True if own is None else own)
        scores = local_scores(*mine, mesh=mesh)
        losses.append([objectives.contrast(scale * x, valid) for x in scores[: 1 + patches_to_sentences]])
    # [slots A-or-B direction], rows are captions
    by_part = jnp.array(losses).mean(axis=0)
    names = ("sentences_to_patches", "patches_to_sentences")
    return by_part.sum(), dict(zip(names, by_part.mean(axis=1))) | {"logit_scale": scale}


PARTS = ("patches", "patch_mask", "sentences", "sentence_mask", "logit_scale")
local_alignment.needs = tuple(f"{{head}}/{part}" for part in PARTS)
local_alignment.pairs_alone = True


def local_scores(
    patches: Float[Array, "N P D"],
    patch_mask: Bool[Array, "N P"],
    sentences: Float[Array, "M S D"],
    sentence_mask: Bool[Array, "M S"],
    *,
    mesh=None,
) -> tuple[Float[Array, "M N"], Float[Array, "M N"]]:
    """How well each caption's sentences and each image's patches find one another, as cosines (MaMA's model.py:288-307).

    A[m, n] = mean over the sentences s of caption m of max over the patches k of image n of cos(p_nk, q_ms), and
    B[m, n] = mean over k of max over s; 0 where there is no sentence or no patch. The vectors are raw.

    Never more than the cosines of one image with `CAPTIONS` captions is held: images come one after the other, and
    the backward pass computes their cosines again. With a mesh each device compares its own images with all captions.
    """

    def on_device(patches, patch_mask, sentences, sentence_mask):
        captions = chunks((unit(sentences), sentence_mask), CAPTIONS)

        def of_image(image):  # its cosines are computed again in the backward pass; a loop's passes are not merged
            compared = jax.checkpoint(lambda part: _of_image(*image, *part), prevent_cse=False)
            return whole(jax.lax.map(compared, captions), len(sentences))

        return jax.lax.map(of_image, (patches, patch_mask))

    def gathered(patches, patch_mask, *texts):
        return on_device(patches, patch_mask, *jax.lax.all_gather(texts, axes, tiled=True))

    inputs = patches, patch_mask, sentences, sentence_mask
    if mesh is None or mesh.size == 1:
        scores = on_device(*inputs)
    else:
        axes = row_axes(len(patches), mesh)
        scores = jax.shard_map(gathered, mesh=mesh, in_specs=PartitionSpec(axes), out_specs=PartitionSpec(axes))(
            *inputs
        )
    return tuple(x.T for x in scores)


def _of_image(patches, patch_mask, sentences, sentence_mask):
    """A [m] and B [m] of one image [P D] and m captions [m S D] of unit vectors."""
    cosines = jnp.einsum("msd,kd->msk", sentences, unit(patches), precision="highest")
    there = sentence_mask[:, :, None] & patch_mask
    cosines = jnp.where(there, cosines, LOWEST)
    return (_mean(cosines.max(axis=2), there.any(axis=2)), _mean(cosines.max(axis=1), there.any(axis=1)))


def _mean(x, mask):
    return jnp.where(mask, x, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
