"""The examples of a split before sampling: breasts, or exams, with their images and texts."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mammoclip_jax.data.batches import texts, units, unpaired
from mammoclip_jax.data.batches.texts import TextOptions
from mammoclip_jax.data.batches.units import Partner
from mammoclip_jax.data.batches.unpaired import Unpaired
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text import reports
from mammoclip_jax.data.text.augment_text import alternatives
from mammoclip_jax.errors import UserError

log = logging.getLogger(__name__)


class Breast(NamedTuple):
    """One training example before sampling."""

    source: int  # position of the data set in the list given
    views: tuple[tuple[int, ...], ...]  # rows of its index, by view: `units.VIEWS` first, others by name; or by slot
    texts: tuple[str, ...]  # without blank and repeated ones
    sections: tuple[str, ...] = ()  # of the texts, where they are paired by section
    fields: tuple[tuple[int, str], ...] = ()  # row and, as JSON, what its caption is rendered from

    @property
    def rows(self) -> list[int]:
        """Of all its views."""
        return [row for rows in self.views for row in rows]


class Exam(NamedTuple):
    """One training example where images have partners: the breasts of an exam that may be drawn."""

    source: int
    breasts: tuple[Breast, ...]


class Breasts(NamedTuple):
    """The breasts of a split, and how many were left out and why."""

    items: list[Breast]
    without_text: int
    without_view: int  # only views that were not asked for


def breasts(
    datasets: Sequence[Dataset],
    split: str,
    *,
    other_views: bool = False,
    text: TextOptions = TextOptions(),
    slots: Sequence[str] = (),
    textless: bool = False,
) -> Breasts:
    """Group the images of a split into breasts (`units.breasts`), in the order of the indexes.

    `other_views` takes views outside `units.VIEWS` (AT, LM, ...) as well; `slots` takes these views alone; `textless`
    takes breasts without text too. Raises UserError, naming the folders, where no breast is left.
    """
    items: list[Breast] = []
    without_text = without_view = 0
    for source, dataset in enumerate(datasets):
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        # Lists, and no frame for each breast, of which there may be a million.
        rows, view_of, of_breast = index.index.tolist(), index["view"].tolist(), texts.of_breasts(index, text)
        captions = texts.caption_fields(index, text) if text.captions else []
        for places in units.members(units.breasts(index)):
            own, named = [rows[place] for place in places], [view_of[place] for place in places]
            views = units.by_slot(own, named, slots) if slots else units.by_view(own, named, other_views)
            section_of = of_breast(places)
            fields = tuple([(rows[place], captions[place]) for place in places if captions and captions[place]])
            without_view += not views
            without_text += bool(views) and not (section_of or fields)
            if views and (section_of or fields or textless):
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
            f"{without_view} only views other than {' and '.join(slots or ('CC', 'MLO'))}; look at the "
            "columns split, texts and view of index.parquet"
        )
    log.info(
        "%s: %d breasts in split %s, %s %d without text, left out %d without a usable view",
        folders,
        len(items),
        split,
        "among them" if textless else "left out",
        without_text,
        without_view,
    )
    return Breasts(items, without_text, without_view)


def with_own_captions(found: Sequence[Breast]) -> list[Breast]:
    """Without the images that no caption can be rendered of, where their breast has captions.

    They would be given that of another view, and in a named slot a text is its own image's.
    """
    kept = []
    for breast in found:
        fields = tuple(own for own in breast.fields if own[0] in breast.rows)
        able = {row for row, _ in fields}
        views = tuple(tuple(row for row in rows if not able or row in able) for rows in breast.views)
        wordless = breast.fields and not (breast.texts or fields)
        kept += [] if wordless else [breast._replace(views=views, fields=fields)]
    lost = sum(len(breast.rows) for breast in found) - sum(len(breast.rows) for breast in kept)
    if lost:
        log.info("left out %d images that no caption can be rendered of beside others of their breast", lost)
    return kept


def exams(found: Sequence[Breast], datasets: Sequence[Dataset], policy: Partner) -> list[Exam]:
    """The breasts of each exam (`units.exams`) together; logs how often no image has the partner that is asked for."""
    numbers = [units.exams(dataset.index) for dataset in datasets]
    grouped: dict[tuple[int, int], list[Breast]] = {}
    for breast in found:
        grouped.setdefault((breast.source, numbers[breast.source][breast.rows[0]]), []).append(breast)
    made = [Exam(source, tuple(own)) for (source, _), own in grouped.items()]
    missing = np.mean([units.without_partner([breast.rows for breast in exam.breasts], policy) for exam in made])
    log.info(
        "%d exams; %.2f %% of the draws will pair an image with itself for want of another one",
        len(made),
        100 * missing,
    )
    return made


def drawable_texts(
    datasets: Sequence[Dataset],
    split: str,
    *,
    other_views: bool = False,
    text: TextOptions,
    mirrored: bool,
    slots: Sequence[str] = (),
    wanted: Unpaired = Unpaired(),
) -> set[str]:
    """Every text that may be drawn where no captions are rendered and no sentences shuffled; with `mirrored`, what the
    horizontal flip makes of it as well. `wanted` says which texts there are beside those of the breasts."""
    items = breasts(datasets, split, other_views=other_views, text=text, slots=slots, textless=wanted.images).items
    pairs = {(breast.source, words) for breast in items for words in breast.texts}
    if text.augmented:
        variants = [alternatives(dataset.path) for dataset in datasets]
        pairs |= {(source, other) for source, words in pairs for other in variants[source].get(words, ())}
    drawn = {words for _, words in pairs} | unpaired.drawable(datasets, split, wanted, text)
    return drawn | {reports.swap_laterality(words) for words in drawn} if mirrored else drawn
