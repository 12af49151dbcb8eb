"""Rows -> the records of a shard: the per-image function in a worker, and the writer that takes its results in order.

The local process pool and Apache Beam run the same two functions, so both write the same bytes.
"""

import hashlib
import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mammoclip_jax.data import leave_out
from mammoclip_jax.data.increment import Stored, link, load
from mammoclip_jax.data.manifest import Problem, other_views
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.data.pool import WorkerLost, ordered_map
from mammoclip_jax.data.store.codecs import encode
from mammoclip_jax.data.store.shards import ShardWriter, shard_name
from mammoclip_jax.files import write_text


class Task(NamedTuple):
    """What a worker needs of a row."""

    path: str
    laterality: str
    view: str
    vendor: str
    boxes: str
    preprocessing: Preprocessing
    codec: str
    leave_out: tuple[str, ...] = ()
    others: tuple[Source, ...] = ()  # the other views of the breast, where the preprocessing compares them


def tasks(
    rows: pd.DataFrame, root: Path, preprocessing: Preprocessing, codec: str, leave_out: tuple[str, ...] = ()
) -> list[Task]:
    """The tasks of manifest rows, whose files lie below `root`."""
    sources = [Source(str(root / row.file), row.laterality, row.view) for row in rows.itertuples()]
    compared = other_views(rows) if preprocessing.scale == "breast" else [()] * len(rows)
    return [
        Task(*source, row.vendor, row.boxes, preprocessing, codec, leave_out, tuple(sources[place] for place in places))
        for source, row, places in zip(sources, rows.itertuples(), compared, strict=True)
    ]


class Made(NamedTuple):
    """What a worker makes of a row: a record and the index columns that come of it."""

    record: bytes
    columns: dict


class Failed(NamedTuple):
    """Why a worker made nothing."""

    stage: str
    reason: str
    remedy: str


MADE_COLUMNS = (
    "laterality",
    "view",
    "vendor",
    "boxes",
    "boxes_canvas",
    "transform",
    "height",
    "width",
    "bits",
    "sha256",
    "flags",
)


def make(task: Task) -> Made | Failed:
    """One image, in a worker: file -> record. Never raises for what is in the file."""
    try:
        if failed := _left_out(task, _header_flags(task)):  # before it is decoded
            return failed
        rendered = render(task.path, task.preprocessing, task.laterality, task.view, task.others)
    except dicom.Unreadable as error:
        return Failed(error.stage, error.reason, error.remedy)
    except MemoryError:
        return Failed("decode", "out of memory", "use fewer workers")
    except Exception as error:  # a long job outlives one odd file; the table says that this is ours to mend
        # The message could quote the file; class and place say enough.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        return Failed("pixels", f"unexpected error: {where}", "report it, with the file's kind")
    try:
        boxes = place_boxes(task.boxes, rendered.transform)
    except ValueError as error:
        return Failed("boxes", f"box outside image: {error}", "table and file do not belong together; correct the box")
    flags = rendered.flags + boxes.flags
    if failed := _left_out(task, flags):
        return failed
    record = encode(rendered.image, task.codec)
    values = (
        rendered.laterality,
        rendered.view,
        task.vendor or rendered.fields.vendor,
        boxes.original,
        boxes.canvas,
        rendered.transform.to_json(),
        *rendered.image.shape,
        task.preprocessing.bits,
        hashlib.sha256(record).hexdigest(),
        ",".join(flags),
    )
    return Made(record, dict(zip(MADE_COLUMNS, values, strict=True)))


def _header_flags(task: Task) -> tuple[str, ...]:
    """What the header says, where that matters; nothing where it cannot be read: `render` says why."""
    if not task.leave_out or task.path.lower().endswith(dicom.PICTURES):
        return ()
    try:
        return dicom.read_fields(task.path).flags
    except (dicom.Unreadable, OSError):
        return ()


def _left_out(task: Task, flags: Iterable[str]) -> Failed | None:
    reason = leave_out.reason(flags, task.leave_out)
    return Failed(leave_out.STAGE, reason, leave_out.REMEDY) if reason else None


class Job(NamedTuple):
    """One shard: its rows in order, and where it goes. Can be pickled; nothing in it refers to other shards."""

    folder: Path  # where the shard and its side file are written
    shard: int
    shards: int
    tasks: tuple[Task, ...]  # one a row
    rows: tuple[dict, ...]  # index columns of each row that the tables give, identifiers hashed, and its key
    problems: tuple[Problem, ...]  # each row's problem, should it fail: file, image, row; identifiers hashed
    private: bool  # reasons lose their details, which could quote the file
    stored: dict[str, Stored]  # records of an earlier run, by key


def work(job: Job) -> Iterator[Task]:
    """The tasks of the rows that no earlier run has made."""
    return (task for task, row in zip(job.tasks, job.rows) if row["key"] not in job.stored)


def write(job: Job, results: Iterator, update: Callable[[], object] = lambda: None) -> None:
    """Writes the shard from the results of `work(job)`, in their order, then the side file that says what is in it."""
    path = job.folder / shard_name(job.shard, job.shards)
    linked = link([job.stored.get(row["key"]) for row in job.rows], path)
    writer = None if linked else ShardWriter(path)
    written, problems = [], []
    for task, row, problem in zip(job.tasks, job.rows, job.problems, strict=True):
        stored = job.stored.get(row["key"])
        result = _from_store(stored, task, linked) if stored else next(results)
        update()
        if isinstance(result, WorkerLost):
            result = Failed("decode", result.reason, "the file is damaged; copy it again")
        if isinstance(result, Failed):
            reason = result.reason.split(":", 1)[0] if job.private else result.reason
            problems.append(problem._replace(stage=result.stage, reason=reason, remedy=result.remedy))
            continue
        if writer:
            writer.write(result.record)
        written.append(row | result.columns | {"shard": job.shard, "position": len(written)})
    if writer:
        writer.close()
    write_text(job.folder / f"{job.shard}.json", json.dumps({"rows": written, "problems": problems}))


def _from_store(stored: Stored, task: Task, linked: bool) -> Made | Failed:
    """The earlier record; made anew should it be damaged."""
    record = b"" if linked else load(stored)
    return make(task) if record is None else Made(record, {name: stored.columns[name] for name in MADE_COLUMNS})


def write_alone(job: Job) -> None:
    """The whole shard in this process and a worker of its own, for runners that distribute shards."""
    write(job, ordered_map(make, work(job), 1))
