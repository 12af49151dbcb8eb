"""The contact sheet: one HTML page that needs no other file."""

import collections
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mammoclip_jax.data import increment
from mammoclip_jax.data.identity import line
from mammoclip_jax.data.make import Failed, make, tasks
from mammoclip_jax.data.manifest import Problem, SourceTable
from mammoclip_jax.data.pixels import breast, dicom, intensity, outside
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing, inner
from mammoclip_jax.data.preview.cards import UNKNOWN, Card, Source, card, eight, facts
from mammoclip_jax.data.preview.page import write_page
from mammoclip_jax.data.preview.sample import spread
from mammoclip_jax.data.private import settled
from mammoclip_jax.data.store.codecs import decode
from mammoclip_jax.data.store.shards import Dataset

_LOOKED_AT = 400  # images whose pixels are measured for the plots
_NO_AIR = "Original not shown: no air is seen in it, so nothing tells burned-in text from the breast."
_KINDS = ("vendor", "view", "laterality")


def preview(folder: Path | str, out: Path | str, count: int = 48, seed: int = 0) -> Path:
    """Writes the contact sheet of a finished data set, from its folder alone; the same bytes for the same seed.

    Each of up to `count` images shows its crop in the frame of the original, as far as the canvas holds it, the final
    image with boxes, its histogram and its flags. Names are those of the data set.

    Returns:
        `out`.

    Raises:
        UserError: the folder is no finished data set, or damaged.
    """
    dataset = Dataset.open(folder)
    rows = dataset.index.assign(boxed=dataset.index["boxes"] != "[]")
    chosen = spread(rows, (*_KINDS, "flags", "boxed"), count, seed)
    cards = [
        card(row["image"], row, dataset.read(position))
        for position, row in ((position, rows.iloc[position]) for position in chosen)
    ]
    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.permutation(len(rows))[:_LOOKED_AT])
    looked_at = [_look(rows.iloc[position], dataset.read(position)) for position in drawn]
    with io.StringIO((dataset.path / "quarantine.csv").read_text()) as text:
        problems = [Problem(**row) for row in csv.DictReader(text)]
    return _write(
        out,
        cards,
        rows,
        problems,
        rows,
        looked_at,
        f"all {len(rows)} images",
        {
            "names": _names(rows),
            "real": dataset.info.get("real", True),
            "made": True,
            "masked": False,
            "preprocessing": dataset.info["preprocessing"],
        },
    )


def preview_source(
    table: SourceTable,
    root: Path | str,
    preprocessing: Preprocessing,
    out: Path | str,
    count: int = 48,
    seed: int = 0,
    masked: bool | None = None,
) -> Path:
    """Writes the contact sheet of a source before anything is built: up to `count` files, rendered for it.

    Each shows the whole original with its crop, the final image with boxes, the histograms of both, and its flags; or
    why it cannot become an image. Images of a private source are named by the line of its table.

    Args:
        root: folder of the files.
        masked: whether the originals show the breast only, without what is burned in beside it; None for private
            sources.

    Returns:
        `out`.

    Raises:
        UserError: as `manifest.checked`.
    """
    masked = not table.public_ids if masked is None else masked
    root = Path(table.root or root)
    table, _ = increment.present(settled(table, root).table, root)
    rows = table.rows.assign(boxed=table.rows["boxes"] != "[]")
    cards, made, looked_at = [], [], []
    todo = tasks(rows, root, preprocessing, "raw")
    for number, position in enumerate(spread(rows, (*_KINDS, "boxed"), count, seed), 1):
        row = rows.iloc[position].to_dict()
        name = row["image"] if table.public_ids else line(row["row"]) or f"image {number} of the sample"
        result = make(todo[position])
        if isinstance(result, Failed):
            reason = result.reason if table.public_ids else result.reason.split(":", 1)[0]
            cards.append(Card(name, facts(row), problem=f"{reason}; {result.remedy}"))
            continue
        row |= result.columns
        canvas = decode(result.record)
        cards.append(card(name, row, canvas, _source(todo[position].path, preprocessing, masked)))
        made.append(row)
        looked_at.append(_look(row, canvas))
    return _write(
        out,
        cards,
        rows,
        table.problems,
        pd.DataFrame(made),
        looked_at,
        f"the {len(made)} images of the sample",
        {
            "names": _names(rows),
            "real": bool(rows["real"].all()),
            "made": False,
            "masked": masked,
            "preprocessing": vars(preprocessing),
        },
    )


def _source(path: str, preprocessing: Preprocessing, masked: bool) -> Source:
    """A file that `make` could read, as it was before."""
    decoded = dicom.read(path, preprocessing.frames)
    grey = intensity.grey(decoded, preprocessing.intensity, preprocessing.voi_item)
    whole = grey.preview()
    if not masked:
        return Source(decoded.stored, whole, "")
    part, searched = inner(whole, grey.inside), inner(grey.search(), grey.inside)
    kept = outside.keep(searched, breast.find(searched))
    if kept is None:
        return Source(decoded.stored, None, _NO_AIR)
    shown = part.copy()
    outside.cover(shown, kept, part.shape, (0, 0, *part.shape))
    hidden = np.zeros_like(whole)
    inner(hidden, grey.inside)[:] = shown
    return Source(decoded.stored, hidden, "")


def _look(row: Mapping, canvas: np.ndarray) -> dict:
    """Mean grey inside the breast (0 to 255) and its share of the canvas in %."""
    top, left, bottom, right = Transform.from_json(row["transform"]).content
    part = eight(canvas)[top:bottom, left:right]
    seen = breast.find(part)
    size = (np.arange(side) * small // side for side, small in zip(part.shape, seen.mask.shape))
    mask = seen.mask[np.ix_(*size)]
    return {
        "vendor": row["vendor"] or UNKNOWN,
        "grey": float(part[mask].mean()),
        "share": 100 * float(mask.sum()) / canvas.size,
    }


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(sorted(rows["dataset"].unique())) or "empty"


def _write(
    out: Path | str,
    cards: Sequence[Card],
    rows: pd.DataFrame,
    problems: Sequence[Problem],
    made: pd.DataFrame,
    looked_at: list[dict],
    of: str,
    about: dict,
) -> Path:
    from mammoclip_jax.data.preview import vendors  # matplotlib takes a while to load

    plots = []
    if len(made):
        plots = vendors.plots(vendors.measures(made), pd.DataFrame(looked_at), of)
    counts = pd.crosstab(rows["vendor"].replace("", UNKNOWN), rows["view"].replace("", UNKNOWN))
    lost = collections.Counter((problem.stage, problem.kind) for problem in problems)
    return write_page(
        out, "page", about, cards=cards, plots=plots, images=len(rows), counts=counts, lost=sorted(lost.items())
    )
