"""Contrastive losses between two sets of unit vectors, and the terms of one view and one text.

The pairs of a global batch are compared in one of three forms (losses/forms.py) that give the same values and gradients
on any number of devices.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import objectives
from mammoclip_jax.losses.forms import compare
from mammoclip_jax.losses.objectives import Vectors
from mammoclip_jax.losses.pairs import Rows, pair_mask, text_ids, there
from mammoclip_jax.types import Batch, Embeddings


class Contrast(NamedTuple):
    """InfoNCE in both directions."""

    forward: Float[Array, ""]  # each query among all keys
    backward: Float[Array, ""]  # each key among all queries
    accuracy: Float[Array, ""]  # share of the queries more similar to a positive key than to every negative one


def info_nce(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    *,
    mask: Bool[Array, " B"] | None = None,
    ids: Int[Array, " B"] | Int[Array, "B K"] | None = None,
    labels: Float[Array, "B B"] | None = None,
    duplicates: str = "negative",
    label_smoothing: float = 0.0,
    form: str = "auto",
    mesh=None,
    **layout,
) -> Contrast:
    """Mean cross-entropy of the rows, and of the columns, of `logit_scale * queries @ keys.T`, in fp32.

    InfoNCE of van den Oord et al. 2018 (arXiv:1807.03748, eq. 4). The target of row i is column i. Where there are more
    positives, it is uniform over them: -1/|P(i)| sum_{p in P(i)} log softmax_p, the mean standing outside the logarithm
    (SupCon's L_out, Khosla et al. 2020, arXiv:2004.11362, eq. 2). With `label_smoothing` e the target is (1 - e) of
    that plus e/n on each of the n columns that count, as torch's CrossEntropyLoss has it.

    Args:
        mask: rows that are False count neither as queries nor as keys. The mean is over the others; 0 without any.
        ids: rows that have an id in common are duplicates.
        duplicates: how a pair of them counts: as any other ("negative"), as a positive one, or not at all ("ignore");
            "partner" makes them the only positives of rows that are compared with themselves (`views.nt_xent`).
        labels: instead of ids, the weight of each pair as a positive: 0 makes a negative, and a pair whose label is
            below 0 does not count. Weights are divided by their sum, over the row and over the column; rows and columns
            without positives are left out of the mean. No gradient goes to them.
        form, mesh, layout: see `forms.compare`; `layout` may hold `axes` and `chunk`.

    Raises:
        UserError: an unknown name, or rows that do not split evenly over the mesh.
    """
    rows = Rows.of_batch(len(queries), mask, ids, duplicates)
    of_rows, of_columns = compare(
        objectives.softmax(label_smoothing),
        Vectors(queries, keys, logit_scale),
        rows,
        functools.partial(pair_mask, duplicates=duplicates),
        labels,
        form=form,
        mesh=mesh,
        **layout,
    )
    return Contrast(
        objectives.cross_entropy(of_rows, label_smoothing),
        objectives.cross_entropy(of_columns, label_smoothing),
        objectives.accuracy(of_rows),
    )


def mil_nce(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    ids: Int[Array, " B"] | Int[Array, "B K"],
    *,
    mask: Bool[Array, " B"] | None = None,
    form: str = "auto",
    mesh=None,
    **layout,
) -> Contrast:
    """-log of the sum over the positives of softmax: the mean of the rows, and of the columns, in fp32.

    -1/B sum_i log sum_{p in P(i)} softmax_p(logit_scale q_i k_p) over the rows p that have an id in common with row i,
    itself among them. The sum stands inside the logarithm (MIL-NCE, Miech et al. 2020, arXiv:1912.06430, eq. 1;
    RegionCLIP's MILCrossEntropy): one near positive is enough, where `info_nce` asks for all. Both are the same where
    all ids differ. The arguments are those of `info_nce`.
    """
    of_rows, of_columns = compare(
        objectives.MARGINAL,
        Vectors(queries, keys, logit_scale),
        Rows.of_batch(len(queries), mask, ids, "positive"),
        functools.partial(pair_mask, duplicates="positive"),
        form=form,
        mesh=mesh,
        **layout,
    )
    return Contrast(*map(objectives.marginal_cross_entropy, (of_rows, of_columns)), objectives.accuracy(of_rows))


def sigmoid_loss(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    mask: Bool[Array, " B"] | None = None,
    ids: Int[Array, " B"] | Int[Array, "B K"] | None = None,
    labels: Float[Array, "B B"] | None = None,
    duplicates: str = "negative",
    label_smoothing: float = 0.0,
    form: str = "auto",
    mesh=None,
    **layout,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`(loss, accuracy)`: SigLIP's sigmoid loss (Zhai et al. 2023, arXiv:2303.15343, eq. 1), in fp32.

    -1/B sum_ij log sigmoid(z_ij (logit_scale q_i k_j + logit_bias)), z_ij = 1 for positive pairs and -1 for others: a
    binary cross-entropy of each pair, whose target is smoothed to (1 - e) y + e/2. Accuracy is that of `info_nce`, and
    so are the arguments, but for `labels`, which here are the targets y, in [0, 1].
    """
    rows = Rows.of_batch(len(queries), mask, ids, duplicates)
    of_rows, _ = compare(
        objectives.sigmoid(label_smoothing),
        Vectors(queries, keys, logit_scale, logit_bias),
        rows,
        functools.partial(pair_mask, duplicates=duplicates),
        labels,
        form=form,
        mesh=mesh,
        **layout,
    )
    return of_rows.loss.sum() / jnp.maximum(rows.valid.sum(), 1), objectives.accuracy(of_rows)


def clip(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    label_smoothing: float = 0.0,
    duplicates: str = "negative",
    form: str = "auto",
):
    """The two-term CLIP loss of the first view and the first text (Radford et al. 2021, arXiv:2103.00020, fig. 3).

    `duplicates` says how pairs of breasts with equal texts count: see `info_nce`; `form`: losses/forms.py.
    """
    contrast = info_nce(
        embeddings.image[:, 0],
        embeddings.text[:, 0],
        embeddings.logit_scale,
        mask=there(batch, more=("paired",)),
        ids=duplicate_ids(batch, duplicates, texts=1),
        duplicates=duplicates,
        label_smoothing=label_smoothing,
        form=form,
        mesh=mesh,
    )
    metrics = {"image_to_text": contrast.forward, "text_to_image": contrast.backward, "accuracy": contrast.accuracy}
    return (contrast.forward + contrast.backward) / 2, metrics


def sigmoid(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    label_smoothing: float = 0.0,
    duplicates: str = "negative",
    form: str = "auto",
):
    """SigLIP's loss of the first view and the first text, with the options of `clip`.

    Raises:
        UserError: the model has no bias.
    """
    if embeddings.logit_bias is None:
        raise UserError(
            "config.losses.sigmoid needs a model with a logit bias: set config.model.logit_bias to its "
            "initial value, -10 in SigLIP (and config.model.logit_scale to 10)."
        )
    loss, accuracy = sigmoid_loss(
        embeddings.image[:, 0],
        embeddings.text[:, 0],
        embeddings.logit_scale,
        embeddings.logit_bias,
        mask=there(batch, more=("paired",)),
        ids=duplicate_ids(batch, duplicates, texts=1),
        duplicates=duplicates,
        label_smoothing=label_smoothing,
        form=form,
        mesh=mesh,
    )
    return loss, {"accuracy": accuracy, "logit_bias": embeddings.logit_bias}


clip.pairs_alone = sigmoid.pairs_alone = True


def duplicate_ids(batch: Batch, duplicates: str, texts: int | None = None) -> Int[Array, "B K"] | None:
    """Ids of the (first) texts, by which duplicates are known; None where they count as any other pair."""
    return None if duplicates == "negative" else text_ids(batch["token_ids"][:, :texts])
