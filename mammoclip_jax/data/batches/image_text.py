"""Data set folders to batches of breasts, or of exams: their views and texts drawn, decoded and stacked.

Sampling follows Mammo-CLIP (Ghosh et al., MICCAI 2024), with these repairs: exams of different dates are not merged,
two texts are drawn without replacement, sentence shuffling works, empty texts are no positives, flips never contradict
the text. What a step sees, row by row, depends on the seed alone: not on threads, nor on the number of processes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from mammoclip_jax.data.batches import region_phrases, regions, targets, texts, units, unpaired
from mammoclip_jax.data.batches.breasts import Breast, Exam, breasts, exams, with_own_captions
from mammoclip_jax.data.batches.region_phrases import OfRegions, Phrases
from mammoclip_jax.data.batches.regions import ANNOTATED, OfImages, Regions
from mammoclip_jax.data.batches.stream import Batches, BatchIterator, Part, check_alike, mixed, of_items
from mammoclip_jax.data.batches.targets import Targets
from mammoclip_jax.data.batches.texts import Augment, TextOptions
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.data.batches.unpaired import Decoupled, Unpaired
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.shared import ByRow
from mammoclip_jax.data.store.side_tables import Arrays
from mammoclip_jax.data.text.augment_text import alternatives
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name


class Options(NamedTuple):
    """How a breast, or an exam, becomes a row of a batch."""

    text_length: int  # tokens
    views: int = 2  # images drawn
    texts: int = 2  # texts drawn
    other_views: bool = False  # also AT, LM, ...
    augment: Augment = Augment(0.5, 0.5, 0.0)
    text: TextOptions = TextOptions()
    # Named slots: with one of these, text t is of the image in view t.
    slots: tuple[str, ...] = ()  # views of a breast, in this order
    partner: Partner | None = None  # any image of an exam, and a second one chosen by this policy
    sentences: int = 0  # of a text that are marked, at most
    boxes: int = 0  # places for boxes in a view; 0: no boxes in the batch
    targets: Targets = Targets()  # labels of each view's breast
    regions: Regions = Regions()  # of each view
    unpaired: Unpaired = Unpaired()  # images and texts that are no pairs
    phrases: Phrases = Phrases()  # about the annotated regions


def check(options: Options) -> None:
    """Raises UserError, naming the fields of `config.data`, where the options do not go together."""
    slots, named = options.slots, options.slots or options.partner
    if slots and options.partner:
        raise UserError(
            f"config.data.slots={slots} are views of a breast and config.data.partner is of an exam: take one of them."
        )
    if len(set(slots)) != len(slots) or slots and len(slots) != options.views:
        raise UserError(
            f"config.data.slots={slots} must be config.data.views={options.views} different views: name one for each."
        )
    if slots and options.other_views:
        raise UserError(
            "config.data.other_views is not read with config.data.slots, which names the views: take it out."
        )
    if options.partner and options.views != 2:
        raise UserError(
            f"config.data.views={options.views}: with config.data.partner there are two, an image and its partner."
        )
    if named and options.texts not in (1, options.views):
        raise UserError(
            f"config.data.texts={options.texts} must be 1, the first view's, or {options.views}, one a view."
        )
    if options.augment.each_view and not (named and options.texts == options.views):
        raise UserError(
            f"config.data.flip_each_view needs slots or partner of config.data, and config.data.texts={options.views}."
        )
    if options.unpaired.asked and options.partner:
        raise UserError(
            "config.data.unpaired does not go with config.data.partner, which pairs an image with its own text and another "
            "one of the exam: take one of them out."
        )
    if options.unpaired.images and options.targets.source == "text":
        raise UserError(
            'config.data.targets.source="text" reads the labels of images in their texts, and config.data.unpaired.images '
            'takes images that have none: take source="labels", or leave the images out.'
        )
    if options.boxes and options.regions.places:
        raise UserError(
            f"config.data.boxes={options.boxes} and config.data.regions.places={options.regions.places} fill the same "
            "places: leave config.data.boxes at 0."
        )
    if options.phrases.count and not (options.regions.places and ANNOTATED in options.regions.sources):
        raise UserError(
            f"config.data.phrases.count={options.phrases.count}: phrases speak of annotated regions. Set config.data.regions."
            f'places, and name "{ANNOTATED}" in its sources.'
        )
    for name in ("sentences", "boxes"):
        if getattr(options, name) < 0:
            raise UserError(f"config.data.{name}={getattr(options, name)} must be 0 (none) or more.")


def canvas_boxes(datasets: Sequence[Dataset], split: str, places: int) -> tuple[dict[int, list], ...]:
    """By data set: row -> boxes [left, top, right, bottom] in canvas pixels, of the images of a split that have any.

    Raises:
        UserError: an image has more boxes than there are places.
    """
    found: list[Mapping[int, list]] = []
    for dataset in datasets:
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        own = {
            row: [item["box"] for item in json.loads(boxes)]
            for row, boxes in zip(index.index.tolist(), index["boxes_canvas"].tolist())
            if boxes != "[]"
        }
        found.append(ByRow(own))
        most = max(map(len, own.values()), default=0)
        if most > places:
            raise UserError(
                f"an image of {dataset.path} has {most} boxes: set config.data.boxes={most}, it is {places}."
            )
    return tuple(found)


@dataclass(frozen=True)
class _Sample:
    """Breast or exam to one row of a Batch, arrays without the leading dimension. Can be pickled."""

    datasets: tuple[Dataset, ...]
    tokenizer: Tokenize
    options: Options
    variants: tuple[Mapping[str, tuple[str, ...]], ...] = ()  # by data set: text to its augmented texts
    features: Arrays | None = None
    boxes: tuple[Mapping[int, list], ...] = ()  # of `canvas_boxes`
    labels: targets.OfLabels | targets.OfTexts | None = None
    regions: OfImages | None = None
    decoupled: Decoupled | None = None
    phrases: OfRegions | None = None

    def __call__(self, unit: Breast | Exam, rng: np.random.Generator) -> dict[str, np.ndarray]:
        options, dataset = self.options, self.datasets[unit.source]
        more: dict[str, np.ndarray] = {}
        if options.partner:
            records = units.draw_pair([breast.rows for breast in unit.breasts], options.partner, rng)
            drawn = self._texts_of_each(unit, records[: options.texts], rng)
        else:
            if options.slots:
                records, more["view_mask"] = units.draw_slots(unit.views, rng)
            else:
                records = units.draw_views(unit.views, options.views, rng)
            drawn = self._texts(unit, records, options.texts, rng)
        if self.labels:
            more |= self.labels(unit.source, records, drawn)
        if self.decoupled:
            drawn, of_texts = self.decoupled(drawn, more, rng)
            more |= of_texts
        spoken = self.phrases.spoken(dataset, unit.source, records) if self.phrases else []
        fixed = [region_phrases.name_position(own) for own in spoken]
        drawn, horizontal, vertical = texts.augment_texts(drawn, options.augment, rng, fixed)
        if options.sentences:
            ids, mask, more["sentence"] = self.tokenizer.encode_sentences(drawn, options.text_length, options.sentences)
        else:
            ids, mask = self.tokenizer.encode(drawn, options.text_length)
        images = {record: dataset.read(record) for record in dict.fromkeys(records)}
        if self.features:
            more["text_features"] = self.features.of(drawn)
        if options.boxes:
            more |= self._boxes(unit.source, records)
        if self.regions:
            more |= self.regions(unit.source, records, rng)
        if self.phrases:
            more |= self.phrases(spoken, more, np.asarray(horizontal), rng)
        return more | {
            "image": np.stack([images[record] for record in records]),
            "record": np.array(records, np.int32),
            "source": np.int32(unit.source),
            "token_ids": ids,
            "token_mask": mask,
            "flip_horizontal": np.asarray(horizontal),
            "flip_vertical": np.asarray(vertical),
            "mask": np.bool_(True),
        }

    def _texts(self, breast: Breast, records: Sequence[int], count: int, rng: np.random.Generator) -> list[str]:
        variants = self.variants[breast.source] if self.variants else {}
        return texts.draw(
            breast.texts, breast.sections, breast.fields, records, count, self.options.text, variants, rng
        )

    def _texts_of_each(self, exam: Exam, records: Sequence[int], rng: np.random.Generator) -> list[str]:
        """A text for each of the images, of its own breast."""
        drawn = [""] * len(records)
        for breast in exam.breasts:
            places = [place for place, record in enumerate(records) if record in breast.rows]
            if places:
                own = self._texts(breast, [records[place] for place in places], len(places), rng)
                for place, text in zip(places, own, strict=True):
                    drawn[place] = text
        return drawn

    def _boxes(self, source: int, records: Sequence[int]) -> dict[str, np.ndarray]:
        shape = (len(records), self.options.boxes)
        boxes, classes = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.int32)
        for view, record in enumerate(records):
            for place, corners in enumerate(self.boxes[source].get(record, ())):
                boxes[view, place], classes[view, place] = corners, 0
        return {"boxes": boxes, "box_classes": classes}


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
    """Endless shuffled batches of `batch_size` breasts (exams, with `options.partner`) over all processes; the keys of
    Batch that the options ask for (text_features where there are `features` of all `drawable_texts`), mask True
    throughout.

    Args:
        rows: the places in each batch that this process makes, in this order (None: all of them); what stands at a
            place does not depend on who makes it.
        weights: one a data set: they are drawn in these proportions, each in its own order. Without, every breast comes
            once an epoch, and no batch holds a breast twice: the breasts left over by the last batch of an epoch are
            dropped, others in each epoch.
        read_threads: threads that decode images (0: the caller's), at most two batches ahead.

    Raises:
        UserError: images of different shape, too few breasts, wrong weights, or wrong options.
    """
    check(options)
    check_alike(datasets)
    check_name(options.text.pairing, texts.PAIRINGS, "pairing of texts")
    items = _units(datasets, split, options)
    if weights is None:
        stream = of_items(items).seed(seed).shuffle()[: len(items) // batch_size * batch_size]
        if not len(stream):
            what = "exams" if options.partner else "breasts"
            raise UserError(
                f"a batch of {batch_size} {what} needs more than the {len(items)} with images and text "
                f"in split {split!r}: lower the batch size or add data sets"
            )
        stream = stream.repeat()
    else:
        stream = mixed(items, datasets, weights, seed)
    variants = tuple(alternatives(dataset.path) for dataset in datasets) if options.text.augmented else ()
    boxes = canvas_boxes(datasets, split, options.boxes) if options.boxes else ()
    labels = targets.reader(datasets, split, options.targets)
    decoupled = unpaired.decoupled(datasets, split, options.unpaired, options.text, labels)
    found = regions.reader(datasets, split, options.regions)
    spoken = OfRegions(options.phrases, tokenizer) if options.phrases.count else None
    sample = _Sample(tuple(datasets), tokenizer, options, variants, features, boxes, labels, found, decoupled, spoken)
    rows = range(batch_size) if rows is None else rows
    # The random numbers belong to the place in the whole stream, so they precede the split by process.
    stream = grain.MapDataset.source(Part(stream.random_map(sample), batch_size, tuple(map(int, rows))))
    reading = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * len(rows) if read_threads else 0)
    # Batching comes after the threads: they share the work of one batch, and hold no more than two.
    return Batches(stream.to_iter_dataset(reading).batch(len(rows), drop_remainder=True))


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


def _units(datasets: Sequence[Dataset], split: str, options: Options) -> list[Breast] | list[Exam]:
    """What the rows of the batches are drawn from."""
    known = {view for dataset in datasets for view in dataset.index["view"] if view}
    for view in options.slots:
        check_name(view, known, "image of the view in config.data.slots:")
    textless, slots = options.unpaired.images, options.slots
    found, without_text, _ = breasts(
        datasets, split, other_views=options.other_views, text=options.text, slots=slots, textless=textless
    )
    unpaired.check_read(options.unpaired, without_text)
    if options.slots or options.partner:
        found = with_own_captions(found)
    return exams(found, datasets, options.partner) if options.partner else found
