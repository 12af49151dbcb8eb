"""MaMA's terms of whole views (Du et al. 2024, arXiv:2409.18119): each view with its text, and the views with one another."""

import jax.numpy as jnp

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.contrastive import duplicate_ids, info_nce
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.losses.pairs import there
from mammoclip_jax.types import Batch, Embeddings


def view_text(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    view: int = 0,
    label_smoothing: float = 0.0,
    duplicates: str = "negative",
    form: str = "auto",
):
    """L_VT of the view in one slot and its text: InfoNCE in both directions, their sum as published (model.py:243-250).

    Over the global batch, where the original contrasts the rows of one device alone. Rows whose slot holds no view of its
    own, or whose text is not its own, are left out.

    Args:
        view: the slot. The text is that of the same slot, or the only one.
        label_smoothing, duplicates, form: see `contrastive.clip`.
    """
    text = slot_text(view, embeddings.image.shape[1], embeddings.text.shape[1], "view_text")
    ids = duplicate_ids(batch, duplicates)
    contrast = info_nce(
        embeddings.image[:, view],
        embeddings.text[:, text],
        embeddings.logit_scale,
        mask=there(batch, (view,), ("paired",)),
        ids=None if ids is None else ids[:, text],
        duplicates=duplicates,
        label_smoothing=label_smoothing,
        form=form,
        mesh=mesh,
    )
    metrics = {"image_to_text": contrast.forward, "text_to_image": contrast.backward, "accuracy": contrast.accuracy}
    return contrast.forward + contrast.backward, metrics


view_text.pairs_alone = True


def nt_xent(
    embeddings: Embeddings, batch: Batch, mesh, *, head: str = "simclr", temperature: float = 0.5, form: str = "auto"
):
    """NT-Xent between the two views of the rows that have both (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    1/2n sum_i -log(e^{z_i z_p(i) / t} / sum_{j != i} e^{z_i z_j / t}) over the 2n vectors of the global batch.

    Args:
        head: name of the head in config.model.heads that makes the vectors, of the kind simclr.
        form: losses/forms.py.
    """
    vectors, both = embeddings.named[f"{head}/vectors"], embeddings.named[f"{head}/there"].all(axis=1)
    if vectors.shape[1] != 2:
        raise UserError(f"nt_xent compares 2 views of a row, got {vectors.shape[1]}: set config.data.views to 2.")
    rows = unit(vectors).reshape(2 * len(vectors), -1)
    contrast = info_nce(
        rows,
        rows,
        jnp.asarray(1 / temperature, rows.dtype),
        mask=jnp.repeat(both, 2),
        ids=jnp.arange(len(vectors)).repeat(2),
        duplicates="partner",
        form=form,
        mesh=mesh,
    )
    return contrast.forward, {"accuracy": contrast.accuracy, "pairs": both.sum(dtype=rows.dtype)}


nt_xent.needs = ("{head}/vectors", "{head}/there")


def slot_text(view: int, views: int, texts: int, term: str) -> int:
    """The slot of the text that goes with the view in a slot.

    Raises:
        UserError: there is no such view, or a text for neither each view nor all.
    """
    if not 0 <= view < views:
        raise UserError(f"config.losses: {term} has view={view}, and config.data.views is {views}.")
    if texts not in (1, views):
        raise UserError(
            f"config.losses: {term} needs one text, or one for each of the {views} views, got {texts}: set "
            "config.data.texts."
        )
    return view if texts > 1 else 0
