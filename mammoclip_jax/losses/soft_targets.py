"""Soft targets: a text is as right for an image as their labels are alike (MedCLIP, Wang et al. 2022, arXiv:2210.10163).

A target is made of the labels of two rows, so it is they that go from device to device, and no [B B] matrix of targets.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import objectives
from mammoclip_jax.losses.contrastive import Contrast
from mammoclip_jax.losses.forms import compare
from mammoclip_jax.losses.objectives import Target, Vectors, unit
from mammoclip_jax.losses.pairs import there
from mammoclip_jax.losses.views import slot_text
from mammoclip_jax.names import lookup
from mammoclip_jax.types import Batch, Embeddings


class Labels(NamedTuple):
    """What is known of n images, or of n texts, in F fields. A value that is not known counts nowhere."""

    values: Float[Array, "n F"]
    known: Bool[Array, "n F"]


class LabelledRows(NamedTuple):
    """Of n rows of the batch: where they stand, whether each side counts and both are a pair, and the labels."""

    index: Int[Array, " n"]
    query_valid: Bool[Array, " n"]
    key_valid: Bool[Array, " n"]
    paired: Bool[Array, " n"]
    query_labels: Labels
    key_labels: Labels


def dot(queries: Labels, keys: Labels) -> Float[Array, "n m"]:
    """Products of label vectors: 1 present, -1 uncertain, 0 absent, as MedCLIP's released code has them (losses.py:49)."""
    return jnp.matmul(_known(queries), _known(keys).T, precision="highest")


def cosine(queries: Labels, keys: Labels) -> Float[Array, "n m"]:
    """Cosines of label vectors, MedCLIP's eq. 3; 0 where one of them has no label."""
    return jnp.matmul(unit(_known(queries)), unit(_known(keys)).T, precision="highest")


def fields(
    queries: Labels, keys: Labels, weights: Sequence[float] = (), ranges: Sequence[float] = ()
) -> Float[Array, "n m"]:
    """Weighted mean, over the fields that both know, of how alike their values are; 0 where there is no such field.

    Values of a nominal field are alike (1) or not (0), those of an ordinal one 1 - |a - b| / range.

    Args:
        weights: of the fields; none: all 1.
        ranges: greatest difference of each ordinal field, 0 of a nominal one; none: all nominal.

    Raises:
        UserError: there are not as many as fields, or one is negative.
    """
    count = queries.values.shape[1]
    weights, ranges = weights or (1.0,) * count, ranges or (0.0,) * count
    for name, given in (("weights", weights), ("ranges", ranges)):
        if len(given) != count or min(given) < 0:
            raise UserError(
                f"soft targets have {count} fields and {name}={tuple(given)}: give one number, 0 or more, for each field."
            )
    alike = total = 0.0
    for f, (weight, span) in enumerate(zip(weights, ranges)):
        a, b = queries.values[:, f, None], keys.values[:, f]
        kernel = 1 - jnp.abs(a - b) / span if span else (a == b).astype(a.dtype)
        shared = weight * (queries.known[:, f, None] & keys.known[:, f]).astype(a.dtype)
        alike, total = alike + jnp.where(shared > 0, shared * kernel, 0), total + shared
    return alike / jnp.where(total > 0, total, 1)


SIMILARITIES = {"cosine": cosine, "dot": dot, "fields": fields}


def soft_info_nce(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    query_labels: Labels,
    key_labels: Labels,
    *,
    similarity: Callable[[Labels, Labels], Float[Array, "n m"]] = cosine,
    temperature: float = 0.2,
    pair: float = 0.0,
    unlabelled_pair: bool = True,
    query_mask: Bool[Array, " B"] | None = None,
    key_mask: Bool[Array, " B"] | None = None,
    paired: Bool[Array, " B"] | None = None,
    form: str = "auto",
    mesh=None,
    **layout,
) -> Contrast:
    """Mean cross-entropy of the rows, and of the columns, of `logit_scale * queries @ keys.T`, in fp32, to soft targets.

    The target of row i is `pair` on column i, and the rest by softmax_j(S_ij / temperature) over the similarities of
    the labels; of columns likewise, over the rows. With `dot`, temperature=1 and unlabelled_pair=False that is MedCLIP's
    released loss (losses.py:44-88, twice its value: it takes the mean of both directions). As the temperature goes to 0
    and labels differ, or with pair=1, it is `info_nce`. No gradient goes to the labels.

    Args:
        similarity: of label vectors, symmetric.
        temperature: of the targets, above 0.
        pair: share of the target on the pair itself, 0 to 1.
        unlabelled_pair: a row of which nothing is known has its pair for a target, all of it. Else its target is
            uniform.
        query_mask, key_mask: rows that are False do not count there: an image without a text, or a text without an image,
            finds the others by their labels alone. A row with neither labels nor its pair is in no mean.
        paired: False where the text of the row is not the image's own: both find the others by their labels alone, and
            one another as any two.
        form, mesh, layout: see `forms.compare`.

    Raises:
        UserError: a number is out of its range, or what `forms.compare` refuses.
    """
    if not (temperature > 0 and 0 <= pair <= 1):
        raise UserError(
            f"soft targets have temperature={temperature} and pair={pair}: the one must be above 0, the other 0 to 1."
        )
    size = len(queries)
    everywhere = jnp.ones(size, bool)
    rows = LabelledRows(
        jnp.arange(size),
        everywhere if query_mask is None else query_mask,
        everywhere if key_mask is None else key_mask,
        everywhere if paired is None else paired,
        *(jax.tree.map(jax.lax.stop_gradient, Labels(*labels)) for labels in (query_labels, key_labels)),
    )

    def pairs(queries: LabelledRows, keys: LabelledRows, _):
        alike = similarity(queries.query_labels, keys.key_labels)
        return queries.query_valid[:, None] & keys.key_valid, Target(
            (queries.index[:, None] == keys.index) & keys.paired, alike / temperature
        )

    summaries = compare(
        objectives.SOFT, Vectors(queries, keys, logit_scale), rows, pairs, form=form, mesh=mesh, **layout
    )
    losses = [
        objectives.soft_cross_entropy(
            summary, jnp.where(labelled(labels, similarity), pair, 1.0) if unlabelled_pair else jnp.full(size, pair)
        )
        for summary, labels in zip(summaries, (rows.query_labels, rows.key_labels))
    ]
    return Contrast(*losses, objectives.accuracy(summaries[0]))


def labelled(labels: Labels, similarity) -> Bool[Array, " n"]:
    """The rows of which something is known: those that are at all like themselves."""
    return jax.vmap(lambda row: similarity(row, row)[0, 0])(jax.tree.map(lambda x: x[:, None], labels)) > 0


def soft_targets(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    view: int = 0,
    similarity: str = "fields",
    weights: Sequence[float] = (),
    ranges: Sequence[float] = (),
    temperature: float = 0.2,
    pair: float = 0.5,
    form: str = "auto",
):
    """MedCLIP's loss between the view in one slot and its text: the mean of both directions of `soft_info_nce`.

    The labels are `target`, where `known`: [B V K] of each view's breast, the text having those of its own view's; or [B K]. With
    `text_target` where `text_known`, [B T K], texts have labels of their own; a text that is not its row's own (`paired`)
    is found by them alone, and a row without a text (`has_text`) has an image alone.

    Args:
        view: the slot, as of `views.view_text`.
        similarity: "fields", "cosine" or "dot".
        weights, ranges: of `fields`. A config has the ranges from `config.data.targets.fields` where it sets none.
        temperature, pair: see `soft_info_nce`.
        form: losses/forms.py.

    Raises:
        UserError: the batch has no labels, or an option does not fit them.
    """
    if "target" not in batch:
        raise UserError("config.losses: soft_targets compares labels, and the batches of this task hold none.")
    alike = lookup(SIMILARITIES, similarity, "similarity of labels")
    if similarity == "fields":
        alike = functools.partial(alike, weights=tuple(weights), ranges=tuple(ranges))
    elif weights or ranges:
        raise UserError(
            f'config.losses: soft_targets reads weights and ranges with similarity="fields" alone, not {similarity!r}; '
            "density and birads of config.data.targets have ranges."
        )
    text = slot_text(view, embeddings.image.shape[1], embeddings.text.shape[1], "soft_targets")
    target, known = (
        x if x.ndim == 3 else x[:, None].repeat(view + 1, axis=1) for x in (batch["target"], batch["known"])
    )
    of_text = Labels(target[:, text], known[:, text])
    if "text_target" in batch:
        of_text = Labels(batch["text_target"][:, text], batch["text_known"][:, text])
    contrast = soft_info_nce(
        embeddings.image[:, view],
        embeddings.text[:, text],
        embeddings.logit_scale,
        Labels(target[:, view], known[:, view]),
        of_text,
        similarity=alike,
        temperature=temperature,
        pair=pair,
        query_mask=there(batch, (view,)),
        key_mask=there(batch, (view,), ("has_text",)),
        paired=batch.get("paired"),
        form=form,
        mesh=mesh,
    )
    metrics = {"image_to_text": contrast.forward, "text_to_image": contrast.backward, "accuracy": contrast.accuracy}
    return (contrast.forward + contrast.backward) / 2, metrics


soft_targets.reads = ("target", "known")


def _known(labels: Labels):
    return jnp.where(labels.known, labels.values, 0)
