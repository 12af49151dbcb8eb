"""Finds the regions of a whole data set once: in parts, so that a run that is stopped goes on.

Everything is made in `DIR/.regions-NAME/`: the regions of PART images are there when `PART.json` is, which says what
was counted. At the end the parts become the table of data/store/region_tables.py, and the folder goes.
"""

import collections
import datetime
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mammoclip_jax import provenance
from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions.found import Found, Method, on_canvas
from mammoclip_jax.data.store import region_tables, side_tables
from mammoclip_jax.data.store.shards import Dataset, read
from mammoclip_jax.data.text.label_values import names_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.locks import locked

PART = 64  # images
OVERLAPS = (0.25, 0.5)  # IoU from which a region covers an annotated box
PARAMETERS = "parameters.json"


def find(dataset: Dataset, name: str, make: Callable[[], Method]) -> dict[str, Any]:
    """The regions of every image of a data set on this machine, stored under `name`.

    Where they are there already, found in the same way, nothing is done.

    Args:
        make: opens the method; called once, before anything is written.

    Returns:
        What the table says of itself (`region_tables.write`), its `counts` among it: images, without_region (images), regions,
        by_label {label: regions}, dropped {why: regions}, unlabelled {why: regions}, and how many of the annotated
        boxes a region covers (`_covered`); and up_to_date.

    Raises:
        UserError: the data set is elsewhere, there are such regions that were found otherwise, another process is at
            it, or the disk is full.
    """
    region_tables.check_name(name)
    if not isinstance(dataset.path, Path):
        raise UserError(f"{dataset.path} is not on this machine: regions are written beside a data set that is.")
    method = make()
    # As JSON will give it back.
    wanted = json.loads(json.dumps(method.made_by | {"dataset": dataset.info["fingerprint"]}))
    if name in region_tables.names(dataset.path):
        there = json.loads((dataset.path / f"regions-{name}.json").read_text())
        if there.get("fingerprint") == dataset.info["fingerprint"]:  # else it is of no use any more
            there = {key: there.get(key) for key in method.made_by} | {"dataset": there["fingerprint"]}
            _check_same(there, wanted, f"{dataset.path} has regions {name!r} that", f"regions-{name}.json")
            return region_tables.read(dataset.path, name).info | {"up_to_date": True}
    folder = dataset.path / f".regions-{name}"
    try:
        with locked(dataset.path / f".regions-{name}.lock", f"finding the regions {name!r}", "use another --name"):
            _start(folder, wanted)
            _find_parts(dataset, folder, method, name)
            info = _joined(dataset, folder, method, name)
            shutil.rmtree(folder)
            return info | {"up_to_date": False}
    except OSError as error:
        raise UserError(
            f"cannot write to {dataset.path}: {error.strerror or error}. What is found is kept: make room or mend it, "
            "and run the same command again."
        ) from error


def _start(folder: Path, wanted: dict) -> None:
    """The folder of the parts, with what a stopped run has found in the same way."""
    path = folder / PARAMETERS
    if path.is_file():
        there = json.loads(path.read_text())
        if there["dataset"] == wanted["dataset"]:
            _check_same(
                there, wanted, f"a run was stopped that had found regions in {folder.parent} which", folder.name
            )
            return
        logging.warning("the data set has changed since %s was begun: it is begun anew", folder)
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_text(path, json.dumps(wanted))


def _check_same(there: Mapping, wanted: Mapping, what: str, remove: str) -> None:
    names = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"{name} was {there.get(name)!r}, and is {wanted.get(name)!r} now" for name in names)
        raise UserError(f"{what} were found otherwise: {differences}. Use another --name, or remove {remove}.")


def _find_parts(dataset: Dataset, folder: Path, method: Method, name: str) -> None:
    todo = [part for part in range(_parts(dataset)) if not (folder / f"{part}.json").is_file()]
    done = sum(len(_rows(dataset, part)) for part in range(_parts(dataset)) if part not in todo)
    if done:
        logging.info("going on: the regions of %d of %d images are there", done, len(dataset))
    size = dataset.info["preprocessing"]["height"], dataset.info["preprocessing"]["width"]
    with tqdm(total=len(dataset), initial=done, unit="image", desc=f"regions {name}", disable=None) as bar:
        for part in todo:
            rows = _rows(dataset, part)
            images = read(dataset, rows) if method.pixels else None
            found = [on_canvas(each, *size) for each in method.find(rows, images)]
            side_tables.write_frame(folder, str(part), _frame(rows, found), schema=region_tables.COLUMNS, index=False)
            counts = _counts(found) | _covered(dataset.index["boxes_canvas"].iloc[rows], found)
            write_text(folder / f"{part}.json", json.dumps(counts))
            bar.update(len(rows))


def _parts(dataset: Dataset) -> int:
    return -(-len(dataset) // PART)


def _rows(dataset: Dataset, part: int) -> range:
    return range(part * PART, min((part + 1) * PART, len(dataset)))


def _frame(rows: Sequence[int], found: Sequence[Found]) -> pd.DataFrame:
    """The columns of a table."""
    columns: dict[str, list] = {name: [] for name in region_tables.COLUMNS.names}
    for row, each in zip(rows, found, strict=True):
        columns["row"] += [row] * len(each.boxes)
        for side, values in zip(region_tables.BOX, each.boxes.T, strict=True):
            columns[side] += values.tolist()
        columns["score"] += np.asarray(each.scores).tolist()
        columns["label"] += list(each.labels)
        columns["cosines"] += [[] if x is None else x.tolist() for x in each.cosines or [None] * len(each.boxes)]
    return pd.DataFrame(columns).astype({"label": object, "cosines": object})  # of no region, they would be numbers


def _counts(found: Sequence[Found]) -> dict[str, Any]:
    labels = collections.Counter(label for each in found for label in each.labels)
    return {
        "images": len(found),
        "without_region": sum(not len(each.boxes) for each in found),
        "regions": sum(len(each.boxes) for each in found),
        "by_label": dict(labels),
        "dropped": _added(each.dropped for each in found),
        "unlabelled": _added(each.unlabelled for each in found),
    }


def _covered(annotated: Sequence[str], found: Sequence[Found]) -> dict[str, dict[str, int]]:
    """{"annotated": {label: boxes of the data set}, "covered_0.25": {label: those that a region overlaps so}, ...}."""
    covered: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for text, each in zip(annotated, found, strict=True):
        for item in json.loads(text):
            best = iou(each.boxes, np.array(item["box"], np.float32)).max(initial=0)
            label = ", ".join(names_of(item))
            covered["annotated"][label] += 1
            for least in OVERLAPS:
                covered[f"covered_{least}"][label] += int(best >= least)
    return {key: dict(covered[key]) for key in ("annotated", *(f"covered_{least}" for least in OVERLAPS))}


def _added(parts) -> dict[str, int]:
    """Numbers by name, added up; those that stay 0 are left out."""
    total: collections.Counter = collections.Counter()
    for part in parts:
        total.update(part)
    return {name: number for name, number in sorted(total.items()) if number}


def _joined(dataset: Dataset, folder: Path, method: Method, name: str) -> dict[str, Any]:
    """The parts as the table, with the sum of their counts."""
    counts = [json.loads((folder / f"{part}.json").read_text()) for part in range(_parts(dataset))]
    total = {
        key: sum(part[key] for part in counts) if isinstance(counts[0][key], int) else _added(p[key] for p in counts)
        for key in counts[0]
    }
    if total["images"] != len(dataset) or total["regions"] != sum(total["by_label"].values()):
        raise AssertionError(f"the counts do not add up: {total}")
    frame = pd.concat([side_tables.read_frame(folder, str(part), "") for part in range(_parts(dataset))])
    info = method.made_by | method.about | {"counts": total, "program": provenance.code()}
    info |= {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    return region_tables.write(dataset.path, name, frame, info)
