"""GLAM's geometry-guided term: mega-patches of the CC and MLO view find what the other view made of them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mammoclip_jax.losses.contrastive import info_nce
from mammoclip_jax.losses.forms import choose
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.types import Batch, Embeddings


def geometry(
    embeddings: Embeddings, batch: Batch, mesh, *, head: str = "cross_view", positions: float = 1.0, form: str = "auto"
):
    """L_view + positions L_pos over the breasts with both views (GLAM, arXiv:2509.10344; its model.py:365-538).

    Both are 1/2 [InfoNCE(m1, r12) + InfoNCE(m2, r21)], where m are a view's mega-patches, r their reconstructions from
    the other view, and InfoNCE is the mean of its two directions. Negatives of L_view are the other mega-patches of the
    same image, those of L_pos the same mega-patch of other images, over the global batch.

    Args:
        head: name of the head in config.model.heads that makes both, of the kind cross_view.
        positions: weight of L_pos; 0 leaves it out.
        form: losses/forms.py, of L_pos.
    """
    cells, rebuilt, there, scale = (embeddings.named[f"{head}/{part}"] for part in PARTS)
    cells, rebuilt = unit(cells), unit(rebuilt)
    pairs = [(cells[:, i], rebuilt[:, i]) for i in range(2)]
    metrics = {"view": sum(within_images(*pair, scale, there) for pair in pairs) / 2}
    loss = metrics["view"]
    if positions:
        metrics["position"] = sum(across_images(*pair, scale, there, form, mesh) for pair in pairs) / 2
        loss = loss + positions * metrics["position"]
    return loss, metrics | {"logit_scale": scale, "pairs": there.sum(dtype=loss.dtype)}


PARTS = ("cells", "rebuilt", "there", "logit_scale")
geometry.needs = tuple(f"{{head}}/{part}" for part in PARTS)


def within_images(
    queries: Float[Array, "B J D"], keys: Float[Array, "B J D"], scale: Float[Array, ""], mask: Bool[Array, " B"]
) -> Float[Array, ""]:
    """InfoNCE among the positions of each image, the mean over the images of the mask; vectors have unit norm."""
    logits = scale * jnp.einsum("bjd,bkd->bjk", queries, keys, precision="highest")
    right = jnp.diagonal(logits, axis1=1, axis2=2)
    each = sum((jax.nn.logsumexp(logits, axis=axis) - right).mean(axis=1) for axis in (1, 2)) / 2
    return jnp.where(mask, each, 0).sum() / jnp.maximum(mask.sum(), 1)


def across_images(
    queries: Float[Array, "B J D"],
    keys: Float[Array, "B J D"],
    scale: Float[Array, ""],
    mask: Bool[Array, " B"],
    form: str,
    mesh,
) -> Float[Array, ""]:
    """InfoNCE among the images at each position, the mean over positions; `form` and `mesh` as in `info_nce`.

    All positions at once: a loop over them would have collectives inside, and devices that are simulated on a CPU may take
    those in different orders, and wait for one another for ever.
    """
    size, positions = queries.shape[:2]
    form = choose(form, math.ceil(size * math.sqrt(positions)), mesh)  # as of one comparison with as many logits

    def at(queries, keys, mask):
        contrast = info_nce(queries, keys, scale, mask=mask, form=form, mesh=mesh)
        return (contrast.forward + contrast.backward) / 2

    # The mask goes along with the positions: under vmap, jax 0.12 differentiates a ring only if all of its outputs do.
    return jax.vmap(at, in_axes=(1, 1, 0))(queries, keys, jnp.broadcast_to(mask, (positions, size))).mean()
