"""Data set folders to batches: sampling the views and texts of breasts, decoding, batching, sharding by process.

Sampling follows Mammo-CLIP (Ghosh et al., MICCAI 2024), with these repairs: exams of different dates are not merged,
two texts are drawn without replacement, sentence shuffling works, empty texts are no positives, flips never contradict
the text. What a step sees, row by row, depends on the seed alone: not on threads, nor on the number of processes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np
import pandas as pd

from mammoclip_jax.data import units
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text import label_values, reports, templating
from mammoclip_jax.data.text.augment_text import alternatives
from mammoclip_jax.data.text.features import TextFeatures
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError

VIEWS = ("CC", "MLO", "")        # the screening views, in this order; "" where the data set does not say
log = logging.getLogger(__name__)


class Augment(NamedTuple):
    """What the host decides about a breast, as probabilities. The device does the flips."""

    flip_horizontal: float      # laterality words in the texts change with it
    flip_vertical: float        # only for breasts whose drawn texts name no position
    shuffle_sentences: float    # of each text


class TextOptions(NamedTuple):
    """Which texts of a breast are drawn."""

    captions: str = ""              # a template: captions are rendered anew at each drawing, of the view drawn with it
    captions_share: float = 1.0     # probability that a caption takes a report text's place; always where none is
    captions_dropout: float = -1.0  # of the template's fields; below 0 is what the template says
    pairing: str = "any"            # "sections": the first text from the findings, the second from the impression
    own_side: bool = False          # without the sentences about the other breast
    augmented: float = 0.0          # probability of a text's variant of texts_augmented.parquet, where it has one


PAIRINGS = ("any", "sections")


def text_options(data) -> TextOptions:
    """The fields of that name in `config.data`."""
    return TextOptions(**{name: data[name] for name in TextOptions._fields})


class Breast(NamedTuple):
    """One training example before sampling."""

    source: int                            # position of the data set in the list given
    views: tuple[tuple[int, ...], ...]     # rows of its index, by view: VIEWS first, then others by name
    texts: tuple[str, ...]                 # without blank and repeated ones
    sections: tuple[str, ...] = ()         # of the texts, where they are paired by section
    fields: tuple[tuple[int, str], ...] = ()   # row and, as JSON, what its caption is rendered from


class Breasts(NamedTuple):
    """The breasts of a split, and how many were left out and why."""

    items: list[Breast]
    without_text: int
    without_view: int                      # only views that were not asked for


def breasts(datasets: Sequence[Dataset], split: str, *, other_views: bool = False,
            text: TextOptions = TextOptions()) -> Breasts:
    """Group the images of a split into breasts (`units.breasts`), in the order of the indexes.

    `other_views` takes views
    outside VIEWS (AT, LM, ...) as well. Raises UserError, naming the folders, where no breast is left.
    """
    items: list[Breast] = []
    without_text = without_view = 0
    for source, dataset in enumerate(datasets):
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        for _, group in index.groupby(units.breasts(index), sort=False):
            views = _by_view(group, other_views)
            found = _texts(group, text)
            fields = _caption_fields(group, text) if text.captions else ()
            without_view += not views
            without_text += bool(views) and not (found or fields)
            if views and (found or fields):
                items.append(Breast(source, views, tuple(found),
                                    tuple(found.values()) if text.pairing == "sections" else (), fields))
    folders = ", ".join(str(d.path) for d in datasets)
    if not items:
        raise UserError(f"no breast to use in split {split!r} of {folders}: {without_text} have no text, "
                        f"{without_view} only views other than CC and MLO; look at the columns split, texts and view "
                        "of index.parquet")
    log.info("%s: %d breasts in split %s, left out %d without text and %d without a usable view", folders, len(items),
             split, without_text, without_view)
    return Breasts(items, without_text, without_view)


def _by_view(group: pd.DataFrame, other_views: bool) -> tuple[tuple[int, ...], ...]:
    others = sorted(set(group["view"]) - set(VIEWS)) if other_views else []
    rows = (group.index[group["view"] == view] for view in (*VIEWS, *others))
    return tuple(tuple(map(int, found)) for found in rows if len(found))


def _texts(group: pd.DataFrame, text: TextOptions) -> dict[str, str]:
    """Text to section of the rows of a breast, without blank and repeated texts."""
    found: dict[str, str] = {}
    sections = group["sections"] if text.pairing == "sections" else [()] * len(group)
    for side, texts, names in zip(group["laterality"], group["texts"], sections, strict=True):
        for place, whole in enumerate(texts):
            kept = (reports.for_side(whole, side) if text.own_side else whole).strip()
            if kept:
                found.setdefault(kept, names[place] if place < len(names) else "")
    return found


def _caption_fields(group: pd.DataFrame, text: TextOptions) -> tuple[tuple[int, str], ...]:
    """What the captions of the rows are rendered from, for those with labels that the template can speak of."""
    found = []
    for row in group.itertuples():
        labels, boxes = json.loads(row.labels), json.loads(row.boxes)
        fields = labels | {"laterality": row.laterality, "view": row.view, "boxes": boxes}
        if label_values.consistent(labels, boxes) and templating.render(text.captions, fields):
            found.append((int(row.Index), json.dumps(fields)))
    return tuple(found)


def drawable_texts(datasets: Sequence[Dataset], split: str, *, text: TextOptions, mirrored: bool) -> set[str]:
    """Every text that may be drawn where no captions are rendered and no sentences shuffled; with `mirrored`, what the
    horizontal flip makes of it as well."""
    found = {(breast.source, words) for breast in breasts(datasets, split, text=text).items for words in breast.texts}
    if text.augmented:
        variants = [alternatives(dataset.path) for dataset in datasets]
        found |= {(source, other) for source, words in found for other in variants[source].get(words, ())}
    texts = {words for _, words in found}
    return texts | {reports.swap_laterality(words) for words in texts} if mirrored else texts


def draw_views(views: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> list[int]:
    """Choose `count` images of a breast: first one of each view, then unused ones, and only then again the same.

    Views come in random order and images at random among their view's.
    """
    views = [rng.permutation(views[i]) for i in rng.permutation(len(views))]
    rounds = range(max(len(v) for v in views))
    turns = [int(view[i]) for i in rounds for view in views if i < len(view)]
    return [turns[i % len(turns)] for i in range(count)]


def draw_texts(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Choose `count` texts without replacement, then again from the start."""
    order = rng.permutation(len(texts))
    return [texts[order[i % len(texts)]] for i in range(count)]


def draw_sections(texts: Sequence[str], sections: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Findings, impression, findings, ... , where both exist: each drawn as `draw_texts` does; else as `draw_texts`."""
    parts = [[text for text, name in zip(texts, sections, strict=True) if name == wanted]
             for wanted in ("findings", "impression")]
    if not all(parts):
        return draw_texts(texts, count, rng)
    drawn = [draw_texts(part, (count + 1) // 2, rng) for part in parts]
    return [text for pair in zip(*drawn, strict=True) for text in pair][:count]


@dataclass(frozen=True)
class _Sample:
    """Breast to one row of a Batch, arrays without the leading dimension. Can be pickled."""

    datasets: tuple[Dataset, ...]
    tokenizer: Tokenize
    views: int
    texts: int
    text_length: int
    augment: Augment
    text: TextOptions = TextOptions()
    variants: tuple[Mapping[str, tuple[str, ...]], ...] = ()     # by data set: text to its augmented texts
    features: TextFeatures | None = None

    def __call__(self, breast: Breast, rng: np.random.Generator) -> dict[str, np.ndarray]:
        records = draw_views(breast.views, self.views, rng)
        texts = self._draw(breast, records, rng)
        texts, horizontal, vertical = augment_texts(texts, self.augment, rng)
        ids, mask = self.tokenizer.encode(texts, self.text_length)
        dataset = self.datasets[breast.source]
        images = {record: dataset.read(record) for record in dict.fromkeys(records)}
        cached = {"text_features": self.features.of(texts)} if self.features else {}
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

    def _draw(self, breast: Breast, records: list[int], rng: np.random.Generator) -> list[str]:
        options = self.text
        if not breast.texts:
            texts = [""] * self.texts
        elif options.pairing == "sections":
            texts = draw_sections(breast.texts, breast.sections, self.texts, rng)
        else:
            texts = draw_texts(breast.texts, self.texts, rng)
        if options.augmented:
            texts = [_variant(text, self.variants[breast.source], options.augmented, rng) for text in texts]
        if breast.fields:
            fields = dict(breast.fields)
            dropout = None if options.captions_dropout < 0 else options.captions_dropout
            for place, text in enumerate(texts):
                if not text or rng.random() < options.captions_share:
                    own = fields.get(records[place % len(records)], breast.fields[0][1])
                    texts[place] = templating.render(options.captions, json.loads(own), rng, dropout)
        return texts


def _variant(text: str, variants: Mapping[str, tuple[str, ...]], chance: float, rng: np.random.Generator) -> str:
    found = variants.get(text, ())
    return found[int(rng.integers(len(found)))] if found and rng.random() < chance else text


def augment_texts(texts: list[str], augment: Augment, rng: np.random.Generator) -> tuple[list[str], bool, bool]:
    """Shuffle sentences, decide the flips, and make the texts fit them.

    Returns the texts, and whether the device shall flip horizontally and vertically.
    """
    horizontal, vertical = rng.random(2) < (augment.flip_horizontal, augment.flip_vertical)
    vertical = vertical and not any(reports.names_position(text) for text in texts)
    if horizontal:
        texts = [reports.swap_laterality(text) for text in texts]
    return [_shuffled(t, rng) if rng.random() < augment.shuffle_sentences else t for t in texts], horizontal, vertical


def _shuffled(text: str, rng: np.random.Generator) -> str:
    sentences = reports.sentences(text)
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def train_dataset(
    datasets: Sequence[Dataset],
    tokenizer: Tokenize,
    *,
    split: str = "train",
    batch_size: int,
    views: int = 2,
    texts: int = 2,
    text_length: int,
    seed: int,
    rows: Sequence[int] | None = None,
    flip_horizontal: float = 0.5,
    flip_vertical: float = 0.5,
    shuffle_sentences: float = 0.0,
    other_views: bool = False,
    weights: Sequence[float] | None = None,
    read_threads: int = 4,
    text: TextOptions = TextOptions(),
    features: TextFeatures | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches of `batch_size` breasts over all processes; all keys of Batch (text_features where there
    are `features` of all `drawable_texts`), mask True throughout.

    `rows` are the places in each batch that this process makes, in this order (None: all of them); what stands at a
    place does not depend on who makes it.
    Without `weights` every breast comes once an epoch, and no batch holds a breast twice: the breasts left over
    by the last batch of an epoch are dropped, others in each epoch. With `weights`, one a data set, the sets are
    drawn in these proportions, each in its own order. The flips and the shuffling are probabilities: see Augment.
    Images are decoded by `read_threads` threads (0: in the caller's), at most two batches ahead.
    Raises UserError for images of different shape, too few breasts, wrong weights, or wrong text options.
    """
    check_alike(datasets)
    if text.pairing not in PAIRINGS:
        raise UserError(f"pairing={text.pairing!r} must be one of {', '.join(PAIRINGS)}")
    items = breasts(datasets, split, other_views=other_views, text=text).items
    if weights is None:
        stream = grain.MapDataset.source(items).seed(seed).shuffle()[:len(items) // batch_size * batch_size]
        if not len(stream):
            raise UserError(f"a batch of {batch_size} breasts needs more than the {len(items)} with images and text "
                            f"in split {split!r}: lower the batch size or add data sets")
        stream = stream.repeat()
    else:
        stream = _mixed(items, datasets, weights, seed)
    augment = Augment(flip_horizontal, flip_vertical, shuffle_sentences)
    variants = tuple(alternatives(dataset.path) for dataset in datasets) if text.augmented else ()
    sample = _Sample(tuple(datasets), tokenizer, views, texts, text_length, augment, text, variants, features)
    rows = range(batch_size) if rows is None else rows
    # The random numbers belong to the place in the whole stream, so they precede the split by process.
    stream = grain.MapDataset.source(Part(stream.random_map(sample), batch_size, tuple(map(int, rows))))
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * len(rows) if read_threads else 0)
    # Batching comes after the threads: they share the work of one batch, and hold no more than two.
    return stream.to_iter_dataset(options).batch(len(rows), drop_remainder=True)


class Part:
    """The `rows` of every batch of a stream, one after the other."""

    def __init__(self, stream: grain.MapDataset, batch_size: int, rows: tuple[int, ...]):
        self._stream, self._batch_size, self._rows = stream, batch_size, rows

    def __len__(self) -> int:
        return len(self._stream) // self._batch_size * len(self._rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        batch, place = divmod(i, len(self._rows))
        return self._stream[batch * self._batch_size + self._rows[place]]


class BatchIterator(grain.DatasetIterator):
    """The iterator over a `train_dataset`. Its state is {"batches": how many it has given}, read ahead or not: the same
    in every process and for any number of them, so that a run may go on with more or fewer."""

    def __init__(self, parts: grain.DatasetIterator, rows: int):
        self._parts, self._rows, self._given = parts, rows, 0
        super().__init__(parts)

    def __next__(self) -> dict[str, np.ndarray]:
        part = next(self._parts)
        self._given += 1
        return part

    def get_state(self) -> dict[str, int]:
        return {"batches": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        self._given = int(state["batches"])
        self._parts.set_state({"next_index": self._given * self._rows})

    def close(self) -> None:
        self._parts.close()


def train_iterator(datasets: Sequence[Dataset], tokenizer: Tokenize, *, batch_size: int,
                   rows: Sequence[int] | None = None, **options) -> BatchIterator:
    """The iterator over `train_dataset` (same arguments): `get_state` and `set_state` resume exactly."""
    dataset = train_dataset(datasets, tokenizer, batch_size=batch_size, rows=rows, **options)
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


def check_alike(datasets: Sequence[Dataset]) -> None:
    """Raise UserError where two data sets, named, hold images of different height, width or bits."""
    def form(dataset: Dataset) -> dict:
        return {key: dataset.info["preprocessing"][key] for key in ("height", "width", "bits")}

    for other in datasets[1:]:
        if form(other) != form(datasets[0]):
            raise UserError(f"images of one batch must be alike, but {datasets[0].path} has {form(datasets[0])} and "
                            f"{other.path} has {form(other)}: prepare one of them again")
