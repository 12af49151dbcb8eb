"""Is a data set folder what it says? Every file, record, row and count is looked at; nothing is changed."""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from array_record.python.array_record_module import ArrayRecordReader
from tokenizers import Tokenizer
from tqdm import tqdm

from mammoclip_jax.data import masks, reported
from mammoclip_jax.data.build import fingerprint
from mammoclip_jax.data.counts import content
from mammoclip_jax.data.make import MADE_COLUMNS
from mammoclip_jax.data.manifest import COLUMNS, LATERALITIES, LIST_COLUMNS, MEMORY_COLUMNS, SPLITS
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.geometry import Transform, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store import storage
from mammoclip_jax.data.store.codecs import decode, header
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.data.store.shards import SCHEMA_VERSION, Dataset, shard_name
from mammoclip_jax.errors import UserError

INFO_KEYS = (
    "schema_version",
    "name",
    "real",
    "shards",
    "preprocessing",
    "counts",
    "provenance",
    "licence",
    "citation",
    "public_ids",
    "fingerprint",
)
INDEX_COLUMNS = tuple(
    dict.fromkeys((*(name for name in COLUMNS if name not in MEMORY_COLUMNS), *MADE_COLUMNS, "shard", "position"))
)
INTEGERS = ("shard", "position", "height", "width", "bits")
_TOLERANCE = 1e-6  # pixels, for points that go to the canvas and back


class _Report:
    def __init__(self):
        self.checks: collections.Counter = collections.Counter()
        self.faults: list[dict] = []
        self.reports: dict = {}

    def check(self, name: str, good: bool, where: str, problem: str, remedy: str = "prepare it anew") -> bool:
        """Counts a check, and its fault where it is not `good`, which it returns."""
        self.checks[name] += 1
        if not good:
            self.faults.append({"check": name, "where": where, "problem": problem, "remedy": remedy})
        return bool(good)

    def result(self) -> dict:
        return {"ok": not self.faults, "checks": dict(self.checks), "faults": self.faults, "reports": self.reports}


class _Fault(NamedTuple):
    check: str
    problem: str
    remedy: str = "copy the shard again, or prepare the set anew"


def verify(path: Path | str) -> dict:
    """Checks a data set folder, on this machine or any storage that fsspec knows.

    Returns:
        ok (no faults), checks {name: how many were made}, faults [{check, where, problem, remedy}], reports
        (`reported.counts`: sections as `prepare` noted them, lacking as the index has it). Rows are named by their
        place in index.parquet, never by an identifier.
    """
    folder, report = storage.located(path), _Report()
    info = _info(folder, report)
    index = _index(folder, report) if info else None
    if index is None:
        return report.result()
    _counts(info, index, report)
    report.reports = (
        {"kept": {}, "dropped": {}} | info["counts"].get("reports", {}) | {"lacking": reported.lacking(index)}
    )
    _tables(folder, info, report)
    _rows(index, report)
    sizes = _shards(folder, info, index, report)
    dataset = Dataset(folder, info, index)
    readable = [row for row in range(len(index)) if _place(index, row, sizes, report)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        checks = pool.map(lambda row: _record(dataset, row), readable)
        for row, faults in tqdm(zip(readable, checks), total=len(readable), desc="verify", unit="image", disable=None):
            bad = {fault.check: fault for fault in faults}
            for name in ("record checksum", "record decodes", "image as described", "image not constant"):
                fault = bad.get(name)
                report.check(name, fault is None, _where(row), *(fault[1:] if fault else ("",)))
    for name, where, problem in masks.checks(dataset):
        report.check(name, not problem, where, problem, "copy it again, or remove the masks and run prepare again")
    return report.result()


def _where(row: int) -> str:
    return f"index.parquet row {row}"


def _info(folder, report: _Report) -> dict | None:
    """dataset.json, None where nothing else can be checked without it."""
    try:
        info = json.loads((folder / "dataset.json").read_text())
        if not isinstance(info, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        report.check(
            "dataset.json",
            False,
            "dataset.json",
            f"cannot be read ({type(error).__name__})",
            "run prepare again; it goes on where it stopped",
        )
        return None
    missing = [name for name in INFO_KEYS if name not in info]
    good = report.check("dataset.json", not missing, "dataset.json", f"lacks {', '.join(missing)}")
    version = info.get("schema_version")
    good &= report.check(
        "schema version",
        version == SCHEMA_VERSION,
        "dataset.json",
        f"schema version {version}, not {SCHEMA_VERSION}",
        "prepare it again into another folder",
    )
    if not good:
        return None
    known = [field.name for field in dataclasses.fields(Preprocessing)]
    try:
        Preprocessing(**info["preprocessing"])
        problem = ""
    except (TypeError, UserError):
        problem = f"preprocessing has other fields or values than {', '.join(known)}"
    return info if report.check("preprocessing", not problem, "dataset.json", problem) else None


def _index(folder, report: _Report) -> pd.DataFrame | None:
    try:
        index = read_table((folder / "index.parquet").read_bytes())
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        report.check("index.parquet", False, "index.parquet", f"cannot be read ({type(error).__name__})")
        return None
    missing = [name for name in INDEX_COLUMNS if name not in index]
    if not report.check("index columns", not missing, "index.parquet", f"lacks {', '.join(missing)}"):
        return None
    for column in LIST_COLUMNS:
        index[column] = [list(value) for value in index[column]]
    good = True
    for name in INDEX_COLUMNS:
        values = index[name]
        kind = (
            "integers"
            if name in INTEGERS
            else "booleans"
            if name == "real"
            else "lists"
            if name in LIST_COLUMNS
            else "text"
        )
        fits = {
            "integers": values.dtype.kind == "i",
            "booleans": values.dtype == bool,
            "lists": True,
            "text": all(isinstance(value, str) for value in values),
        }[kind]
        good &= report.check("index types", fits, f"index.parquet column {name}", f"is {values.dtype}, not {kind}")
    return index if good else None


def _counts(info: dict, index: pd.DataFrame, report: _Report) -> None:
    try:
        numbers = {"images": len(index)} | content(index)
    except (ValueError, TypeError) as error:
        report.check("counts", False, "index.parquet", f"cannot be counted ({type(error).__name__})")
        return
    counts = info["counts"]
    for name, number in numbers.items():
        report.check(
            "counts",
            counts.get(name) == number,
            "dataset.json",
            f"counts {counts.get(name)} {name}, index.parquet has {number}",
        )
    total = counts.get("images", 0) + counts.get("quarantined", 0)
    report.check(
        "counts",
        counts.get("images_in") == total,
        "dataset.json",
        f"images_in is {counts.get('images_in')}, images and quarantined are {total} together",
    )
    report.check(
        "fingerprint",
        info["fingerprint"] == fingerprint(index),
        "dataset.json",
        "fingerprint is not that of index.parquet",
        "copy index.parquet again, or prepare the set anew",
    )


def _tables(folder, info: dict, report: _Report) -> None:
    """quarantine.csv and tokenizer.json."""
    counts = info["counts"]
    try:
        lines = list(csv.DictReader(io.StringIO((folder / "quarantine.csv").read_text())))
        reasons = collections.Counter(line["reason"].split(":", 1)[0] for line in lines)
        good = len(lines) == counts.get("quarantined") and dict(reasons) == counts.get("reasons", dict(reasons))
        problem = f"has {len(lines)} lines or other reasons, dataset.json counts {counts.get('quarantined')}"
    except (OSError, ValueError, KeyError, csv.Error) as error:
        good, problem = False, f"cannot be read ({type(error).__name__})"
    report.check("quarantine", good, "quarantine.csv", problem)
    if not counts.get("texts"):
        return
    try:
        Tokenizer.from_str((folder / "tokenizer.json").read_text())
        problem = ""
    except Exception as error:  # the package raises plain Exception
        problem = f"cannot be loaded ({type(error).__name__})"
    report.check("tokenizer", not problem, "tokenizer.json", problem)


def _rows(index: pd.DataFrame, report: _Report) -> None:
    repeated = index["image"].duplicated().to_numpy()
    splits = index.groupby("patient")["split"].transform("nunique").to_numpy()
    for row, values in enumerate(index.itertuples(index=False)):

        def check(name: str, good: bool, problem: str, row=row) -> None:
            report.check(name, good, _where(row), problem)

        check("image ids", not repeated[row] and bool(values.image.strip()), "its image id is empty or not its own")
        check("splits", values.split in SPLITS, f"split is {values.split!r}")
        check("patients", splits[row] == 1, "its patient is in more than one split")
        check("laterality", values.laterality in LATERALITIES, f"laterality is {values.laterality!r}")
        texts = values.texts
        check(
            "texts",
            len(texts) == len(values.sections) and all(str(text).strip() for text in texts),
            "blank text, or texts and sections differ in number",
        )
        for name, test in (("labels", _labels), ("transform", _transform), ("boxes", _boxes)):
            check(name, not (problem := _problem(test, values)), problem)


def _problem(test: Callable[[NamedTuple], str], values: NamedTuple) -> str:
    try:
        return test(values)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return f"cannot be read ({type(error).__name__})"


def _labels(values: NamedTuple) -> str:
    return "" if isinstance(json.loads(values.labels), dict) else "labels are no JSON object"


def _transform(values: NamedTuple) -> str:
    transform = Transform.from_json(values.transform)
    if Transform.from_json(transform.to_json()) != transform:
        return "transform changes when it is written and read"
    if transform.canvas != (values.height, values.width):
        return f"canvas of the transform is {transform.canvas}, the image {(values.height, values.width)}"
    y0, x0, y1, x1 = transform.crop
    top, left, bottom, right = frame(transform.original, transform.rotation)
    if not (top <= y0 < y1 <= bottom and left <= x0 < x1 <= right):
        return f"crop {transform.crop} is not in the image {transform.original}"
    corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1], [(x0 + x1) / 3, (y0 + y1) / 3]], float)
    error = np.abs(transform.points_inverse(transform.points(corners)) - corners).max()
    return "" if error < _TOLERANCE else f"points come back {error:.2g} pixels away"


def _boxes(values: NamedTuple) -> str:
    transform = Transform.from_json(values.transform)
    height, width = transform.original
    for item in json.loads(values.boxes):
        x0, y0, x1, y1 = item["box"]
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            return f"box {item['box']} is not inside {width} x {height}"
    placed = json.loads(place_boxes(values.boxes, transform).canvas)
    same = json.loads(values.boxes_canvas) == placed
    return "" if same else "boxes on the canvas are not where the transform puts them"


def _shards(folder, info: dict, index: pd.DataFrame, report: _Report) -> dict[int, int]:
    """Records of each shard that can be read."""
    sizes = {}
    rows = index["shard"].value_counts()
    for shard in range(info["shards"]):
        name = shard_name(shard, info["shards"])
        remedy = "copy it again, or prepare the set anew"
        try:
            file = folder / name
            if not report.check("shard files", file.is_file(), name, "missing", remedy):
                continue
            reader = ArrayRecordReader(str(storage.local(file)), options="readahead_buffer_size:0")
            sizes[shard] = reader.num_records()
            reader.close()
        except (OSError, ValueError, RuntimeError) as error:
            report.check("shard records", False, name, f"cannot be read ({type(error).__name__})", remedy)
            continue
        expected = int(rows.get(shard, 0))
        report.check(
            "shard records",
            sizes[shard] == expected,
            name,
            f"holds {sizes[shard]} records, index.parquet says {expected}",
            remedy,
        )
    places = index.duplicated(["shard", "position"])
    report.check("places", not places.any(), "index.parquet", f"{places.sum()} rows share a record with another")
    return sizes


def _place(index: pd.DataFrame, row: int, sizes: dict[int, int], report: _Report) -> bool:
    shard, position = int(index["shard"].iloc[row]), int(index["position"].iloc[row])
    good = shard in sizes and 0 <= position < sizes[shard]
    return report.check("places", good, _where(row), f"there is no record {position} in shard {shard}")


def _record(dataset: Dataset, row: int) -> list[_Fault]:
    values = dataset.index.iloc[row]
    try:
        record = dataset.record(row)
    except UserError:
        return [_Fault("record checksum", "the shard is damaged here")]
    faults = []
    if hashlib.sha256(record).hexdigest() != values["sha256"]:
        faults.append(_Fault("record checksum", "its record is not the one that was written"))
    try:
        image, head = decode(record), header(record)
    except ValueError as error:  # a missing package of the codec says so itself
        return faults + [_Fault("record decodes", str(error))]
    wanted = tuple(dataset.info["preprocessing"][name] for name in ("height", "width", "bits"))
    said = tuple(int(values[name]) for name in ("height", "width", "bits"))
    if not wanted == said == (head.height, head.width, head.bits):
        faults.append(
            _Fault(
                "image as described",
                f"height, width, bits are {(head.height, head.width, head.bits)},"
                f" {said} in the index and {wanted} in dataset.json",
                "prepare it anew",
            )
        )
    if image.min() == image.max():
        faults.append(_Fault("image not constant", "all its pixels are alike", "look at the original file"))
    return faults
