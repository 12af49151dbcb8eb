"""Data set folders to batches of breasts: their views and texts drawn, decoded and stacked.

Sampling follows Mammo-CLIP (Ghosh et al., MICCAI 2024), with these repairs: exams of different dates are not merged,
two texts are drawn without replacement, sentence shuffling works, empty texts are no positives, flips never contradict
the text. What a step sees, row by row, depends on the seed alone: not on threads, nor on the number of processes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from mammoclip_jax.data.batches import texts, units
from mammoclip_jax.data.batches.stream import BatchIterator, Part, check_alike
from mammoclip_jax.data.batches.texts import Augment, TextOptions
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.side_tables import Arrays
from mammoclip_jax.data.text import reports
from mammoclip_jax.data.text.augment_text import alternatives
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

log = logging.getLogger(__name__)


class Options(NamedTuple):
    """How a breast becomes a row of a batch."""

    text_length: int  # tokens
    views: int = 2  # images drawn
    texts: int = 2  # texts drawn
    other_views: bool = False  # also AT, LM, ...
    augment: Augment = Augment(0.5, 0.5, 0.0)
    text: TextOptions = TextOptions()


class Breast(NamedTuple):
    """One training example before sampling."""

    source: int  # position of the data set in the list given
    views: tuple[tuple[int, ...], ...]  # rows of its index, by view: `units.VIEWS` first, then others by name
    texts: tuple[str, ...]  # without blank and repeated ones
    sections: tuple[str, ...] = ()  # of the texts, where they are paired by section
    fields: tuple[tuple[int, str], ...] = ()  # row and, as JSON, what its caption is rendered from


class Breasts(NamedTuple):
    """The breasts of a split, and how many were left out and why."""

    items: list[Breast]
    without_text: int
    without_view: int  # only views that were not asked for


def breasts(
    datasets: Sequence[Dataset], split: str, *, other_views: bool = False, text: TextOptions = TextOptions()
) -> Breasts:
    """Group the images of a split into breasts (`units.breasts`), in the order of the indexes.

    `other_views` takes views outside `units.VIEWS` (AT, LM, ...) as well. Raises UserError, naming the folders, where no
    breast is left.
    """
    items: list[Breast] = []
    without_text = without_view = 0
    for source, dataset in enumerate(datasets):
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        for _, group in index.groupby(units.breasts(index), sort=False):
            views = units.by_view(group, other_views)
            section_of = texts.of_breast(group, text)
            fields = texts.caption_fields(group, text) if text.captions else ()
            without_view += not views
            without_text += bool(views) and not (section_of or fields)
            if views and (section_of or fields):
                items.append(
                    Breast(
                        source,
                        views,
                        tuple(section_of),
                        tuple(section_of.values()) if text.pairing == "sections" else (),
                        fields,
                    )
                )
    folders = ", ".join(str(d.path) for d in datasets)
    if not items:
        raise UserError(
            f"no breast to use in split {split!r} of {folders}: {without_text} have no text, "
            f"{without_view} only views other than CC and MLO; look at the columns split, texts and view "
            "of index.parquet"
        )
    log.info(
        "%s: %d breasts in split %s, left out %d without text and %d without a usable view",
        folders,
        len(items),
        split,
        without_text,
        without_view,
    )
    return Breasts(items, without_text, without_view)


def drawable_texts(
    datasets: Sequence[Dataset], split: str, *, other_views: bool = False, text: TextOptions, mirrored: bool
) -> set[str]:
    """Every text that may be drawn where no captions are rendered and no sentences shuffled; with `mirrored`, what the
    horizontal flip makes of it as well."""
    items = breasts(datasets, split, other_views=other_views, text=text).items
    pairs = {(breast.source, words) for breast in items for words in breast.texts}
    if text.augmented:
        variants = [alternatives(dataset.path) for dataset in datasets]
        pairs |= {(source, other) for source, words in pairs for other in variants[source].get(words, ())}
    drawn = {words for _, words in pairs}
    return drawn | {reports.swap_laterality(words) for words in drawn} if mirrored else drawn


@dataclass(frozen=True)
class _Sample:
    """Breast to one row of a Batch, arrays without the leading dimension. Can be pickled."""

    datasets: tuple[Dataset, ...]
    tokenizer: Tokenize
    options: Options
    variants: tuple[Mapping[str, tuple[str, ...]], ...] = ()  # by data set: text to its augmented texts
    features: Arrays | None = None

    def __call__(self, breast: Breast, rng: np.random.Generator) -> dict[str, np.ndarray]:
        options, dataset = self.options, self.datasets[breast.source]
        records = units.draw_views(breast.views, options.views, rng)
        drawn = texts.draw(
            breast.texts,
            breast.sections,
            breast.fields,
            records,
            options.texts,
            options.text,
            self.variants[breast.source] if self.variants else {},
            rng,
        )
        drawn, horizontal, vertical = texts.augment_texts(drawn, options.augment, rng)
        ids, mask = self.tokenizer.encode(drawn, options.text_length)
        images = {record: dataset.read(record) for record in dict.fromkeys(records)}
        cached = {"text_features": self.features.of(drawn)} if self.features else {}
        return cached | {
            "image": np.stack([images[record] for record in records]),
            "record": np.array(records, np.int32),
            "source": np.int32(breast.source),
            "token_ids": ids,
            "token_mask": mask,
            "flip_horizontal": np.bool_(horizontal),
            "flip_vertical": np.bool_(vertical),
            "mask": np.bool_(True),
        }


def train_dataset(
    datasets: Sequence[Dataset],
    tokenizer: Tokenize,
    options: Options,
    *,
    split: str = "train",
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    read_threads: int = 4,
    features: Arrays | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches of `batch_size` breasts over all processes; all keys of Batch (text_features where there
    are `features` of all `drawable_texts`), mask True throughout.

    Args:
        rows: the places in each batch that this process makes, in this order (None: all of them); what stands at a
            place does not depend on who makes it.
        weights: one a data set: they are drawn in these proportions, each in its own order. Without, every breast comes
            once an epoch, and no batch holds a breast twice: the breasts left over by the last batch of an epoch are
            dropped, others in each epoch.
        read_threads: threads that decode images (0: the caller's), at most two batches ahead.

    Raises:
        UserError: images of different shape, too few breasts, wrong weights, or wrong text options.
    """
    check_alike(datasets)
    check_name(options.text.pairing, texts.PAIRINGS, "pairing of texts")
    items = breasts(datasets, split, other_views=options.other_views, text=options.text).items
    if weights is None:
        stream = grain.MapDataset.source(items).seed(seed).shuffle()[: len(items) // batch_size * batch_size]
        if not len(stream):
            raise UserError(
                f"a batch of {batch_size} breasts needs more than the {len(items)} with images and text "
                f"in split {split!r}: lower the batch size or add data sets"
            )
        stream = stream.repeat()
    else:
        stream = _mixed(items, datasets, weights, seed)
    variants = tuple(alternatives(dataset.path) for dataset in datasets) if options.text.augmented else ()
    sample = _Sample(tuple(datasets), tokenizer, options, variants, features)
    rows = range(batch_size) if rows is None else rows
    # The random numbers belong to the place in the whole stream, so they precede the split by process.
    stream = grain.MapDataset.source(Part(stream.random_map(sample), batch_size, tuple(map(int, rows))))
    reading = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * len(rows) if read_threads else 0)
    # Batching comes after the threads: they share the work of one batch, and hold no more than two.
    return stream.to_iter_dataset(reading).batch(len(rows), drop_remainder=True)


def train_iterator(
    datasets: Sequence[Dataset],
    tokenizer: Tokenize,
    options: Options,
    *,
    batch_size: int,
    rows: Sequence[int] | None = None,
    **more,
) -> BatchIterator:
    """The iterator over `train_dataset` (same arguments): `get_state` and `set_state` resume exactly."""
    dataset = train_dataset(datasets, tokenizer, options, batch_size=batch_size, rows=rows, **more)
    return BatchIterator(iter(dataset), batch_size if rows is None else len(rows))


def _mixed(items: list[Breast], datasets: Sequence[Dataset], weights: Sequence[float], seed: int) -> grain.MapDataset:
    if len(weights) != len(datasets) or min(weights) <= 0:
        raise UserError(f"weights={tuple(weights)} must be positive, one for each of the {len(datasets)} data sets")
    groups = [[item for item in items if item.source == source] for source in range(len(datasets))]
    for dataset, group in zip(datasets, groups, strict=True):
        if not group:
            raise UserError(f"{dataset.path} has a weight but no breast with images and text in this split: remove it")
    streams = [grain.MapDataset.source(group).seed(seed + i).shuffle().repeat() for i, group in enumerate(groups)]
    return grain.MapDataset.mix(streams, weights=list(weights)).seed(seed)
