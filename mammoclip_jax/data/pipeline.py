"""Data set folders to batches: sampling the views and texts of breasts, decoding, batching, sharding by process.

Sampling follows Mammo-CLIP (Ghosh et al., MICCAI 2024), with these repairs: exams of different dates are not merged,
two texts are drawn without replacement, sentence shuffling works, empty texts are no positives, flips never contradict
the text. What a step sees depends on the seed alone: not on threads, and, up to
the order inside the global batch, not on the number of processes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np
import pandas as pd

from mammoclip_jax.data import reports
from mammoclip_jax.data.shards import Dataset
from mammoclip_jax.data.tokenizer import Tokenize
from mammoclip_jax.errors import UserError

VIEWS = ("CC", "MLO", "")        # the screening views, in this order; "" where the data set does not say
log = logging.getLogger(__name__)


class Augment(NamedTuple):
    """What the host decides about a breast, as probabilities. The device does the flips."""

    flip_horizontal: float      # laterality words in the texts change with it
    flip_vertical: float        # only for breasts whose drawn texts name no position
    shuffle_sentences: float    # of each text


class Breast(NamedTuple):
    """One training example before sampling."""

    source: int                            # position of the data set in the list given
    views: tuple[tuple[int, ...], ...]     # rows of its index, by view: VIEWS first, then others by name
    texts: tuple[str, ...]                 # without blank and repeated ones


class Breasts(NamedTuple):
    """The breasts of a split, and how many were left out and why."""

    items: list[Breast]
    without_text: int
    without_view: int                      # only views that were not asked for


def breasts(datasets: Sequence[Dataset], split: str, *, other_views: bool = False) -> Breasts:
    """Group the images of a split into breasts, in the order of the indexes.

    A breast is one side in one study; images whose laterality is unknown are a breast each. `other_views` takes views
    outside VIEWS (AT, LM, ...) as well. Raises UserError, naming the folders, where no breast is left.
    """
    items: list[Breast] = []
    without_text = without_view = 0
    for source, dataset in enumerate(datasets):
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        alone = np.where(index["laterality"] == "", index["image"], "")
        for _, group in index.groupby(["dataset", "study", "laterality", alone], sort=False):
            views = _by_view(group, other_views)
            texts = tuple(dict.fromkeys(t.strip() for texts in group["texts"] for t in texts if t.strip()))
            without_view += not views
            without_text += bool(views) and not texts
            if views and texts:
                items.append(Breast(source, views, texts))
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


@dataclass(frozen=True)
class _Sample:
    """Breast to one row of a Batch, arrays without the leading dimension. Can be pickled."""

    datasets: tuple[Dataset, ...]
    tokenizer: Tokenize
    views: int
    texts: int
    text_length: int
    augment: Augment

    def __call__(self, breast: Breast, rng: np.random.Generator) -> dict[str, np.ndarray]:
        records = draw_views(breast.views, self.views, rng)
        texts = draw_texts(breast.texts, self.texts, rng)
        texts, horizontal, vertical = augment_texts(texts, self.augment, rng)
        ids, mask = self.tokenizer.encode(texts, self.text_length)
        dataset = self.datasets[breast.source]
        images = {record: dataset.read(record) for record in dict.fromkeys(records)}
        return {
            "image": np.stack([images[record] for record in records]),
            "record": np.array(records, np.int32),
            "source": np.int32(breast.source),
            "token_ids": ids,
            "token_mask": mask,
            "flip_horizontal": np.bool_(horizontal),
            "flip_vertical": np.bool_(vertical),
            "mask": np.bool_(True),
        }


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
    process_index: int = 0,
    process_count: int = 1,
    flip_horizontal: float = 0.5,
    flip_vertical: float = 0.5,
    shuffle_sentences: float = 0.0,
    other_views: bool = False,
    weights: Sequence[float] | None = None,
    read_threads: int = 4,
) -> grain.IterDataset:
    """Endless shuffled batches; `batch_size` breasts for this process, all keys of Batch, mask True throughout.

    Without `weights` every breast comes once an epoch, and no global batch holds a breast twice: the breasts left over
    by the last batch of an epoch are dropped, others in each epoch. With `weights`, one a data set, the sets are
    drawn in these proportions, each in its own order. The flips and the shuffling are probabilities: see Augment.
    Images are decoded by `read_threads` threads (0: in the caller's), at most two batches ahead.
    Raises UserError for images of different shape, too few breasts, or wrong weights.
    """
    check_alike(datasets)
    items = breasts(datasets, split, other_views=other_views).items
    global_batch = batch_size * process_count
    if weights is None:
        stream = grain.MapDataset.source(items).seed(seed).shuffle()[:len(items) // global_batch * global_batch]
        if not len(stream):
            raise UserError(f"a batch of {global_batch} breasts needs more than the {len(items)} with images and text "
                            f"in split {split!r}: lower the batch size or add data sets")
        stream = stream.repeat()
    else:
        stream = _mixed(items, datasets, weights, seed)
    augment = Augment(flip_horizontal, flip_vertical, shuffle_sentences)
    sample = _Sample(tuple(datasets), tokenizer, views, texts, text_length, augment)
    # The random numbers belong to the place in the global stream, so they precede the split by process.
    stream = stream.random_map(sample)[process_index::process_count]
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * batch_size if read_threads else 0)
    # Batching comes after the threads: they share the work of one batch, and hold no more than two.
    return stream.to_iter_dataset(options).batch(batch_size, drop_remainder=True)


def train_iterator(datasets: Sequence[Dataset], tokenizer: Tokenize, **options) -> grain.DatasetIterator:
    """The iterator over `train_dataset` (same arguments): `get_state` and `set_state` resume exactly, and
    `grain.checkpoint.CheckpointSave(iterator)` puts it into an Orbax checkpoint."""
    return iter(train_dataset(datasets, tokenizer, **options))


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
