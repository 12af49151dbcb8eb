"""Regions and what is said of them: phrases find their regions, and regions their phrases, over the global batch."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mammoclip_jax.losses import objectives
from mammoclip_jax.losses.forms import compare
from mammoclip_jax.losses.objectives import Vectors, unit
from mammoclip_jax.losses.pairs import text_ids
from mammoclip_jax.types import Batch, Embeddings


class PhraseRows(NamedTuple):
    """Of n phrases: each is a key, and its region a query."""

    index: Int[Array, " n"]
    spoken: Bool[Array, " n"]  # it speaks of a region
    denies: Bool[Array, " n"]  # it says what is not there
    label: Bool[Array, " n"]  # it is no more than a finding's name, true of each region of the finding
    region: Int[Array, " n"]
    text: Int[Array, " n"]  # the same number for equal texts
    findings: Int[Array, " n"]  # a bit each


def pairs(queries: PhraseRows, keys: PhraseRows, _) -> tuple[Bool[Array, "n m"], Bool[Array, "n m"]]:
    """Which pairs of a query's region and a key's phrase count, and which are positive.

    Positive: a phrase of the region, one that is equal to a phrase of it, the name of its finding. A denial counts for
    regions of what it denies, as a negative, and for no others; a phrase of no region that denies nothing counts nowhere.
    """
    shared = (queries.findings[:, None] & keys.findings) != 0
    own = (queries.region[:, None] == keys.region) | (queries.text[:, None] == keys.text) | (keys.label & shared)
    counts = queries.spoken[:, None] & (keys.spoken | (keys.denies & shared))
    return counts, own & ~keys.denies


def region_phrase(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    regions: str = "regions",
    temperature: float = 0.07,
    form: str = "auto",
):
    """InfoNCE of regions and phrases in both directions, the mean of both; the positives are those of `pairs`.

    Each phrase that speaks of a region makes a query of that region. The target is uniform over the positives
    (`contrastive.info_nce`).

    Args:
        regions: name of the head in config.model.heads, of the kind regions.
        temperature: of the cosines.
        form: losses/forms.py.
    """
    vectors, there, phrases = (embeddings.named[name.format(regions=regions)] for name in NEEDS)
    size, _, places, width = vectors.shape
    view, place = jnp.moveaxis(batch["phrase_region"], -1, 0)
    number = jnp.where(view >= 0, view * places + place, 0)
    queries = jnp.take_along_axis(vectors.reshape(size, -1, width), number[..., None], axis=1)
    rows = jnp.ones(size, bool) if batch.get("mask") is None else batch["mask"]
    spoken = (view >= 0) & jnp.take_along_axis(there.reshape(size, -1), number, axis=1) & rows[:, None]
    level = batch["phrase_level"]
    known = PhraseRows(
        jnp.arange(level.size),
        spoken,
        batch["phrase_negated"] & (level >= 0) & rows[:, None],
        level == 0,
        jnp.arange(size)[:, None] * there[0].size + number,
        text_ids(batch["phrase_ids"]),
        batch["phrase_findings"],
    )
    known = PhraseRows(*(x.reshape(-1) for x in known))
    queries, phrases = (unit(x).reshape(-1, width) for x in (queries, phrases))
    compared = Vectors(queries, phrases, jnp.asarray(1 / temperature, queries.dtype))
    of_rows, of_columns = compare(objectives.softmax(0.0), compared, known, pairs, form=form, mesh=mesh)
    forward, backward = (objectives.cross_entropy(summary, 0.0) for summary in (of_rows, of_columns))
    metrics = {
        "region_to_phrase": forward,
        "phrase_to_region": backward,
        "accuracy": objectives.accuracy(of_rows),
        "phrases": spoken.sum(dtype=forward.dtype),
    }
    return (forward + backward) / 2, metrics


NEEDS = ("{regions}/vectors", "{regions}/mask", "phrase/vectors")
region_phrase.needs = NEEDS
region_phrase.reads = ("phrase_region",)
