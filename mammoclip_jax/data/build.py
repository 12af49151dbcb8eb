"""Manifest -> data set folder: in parallel, resumable, incremental.

Rows are dealt to shards in their order, so the same manifest and files give the same shards, whatever the number of
workers, the runner, and what was there before. Everything new is made in `.building/`: a shard appears under its name
when whole, then a side file says what is in it. A run that is killed goes on with the shards that lack one. At the end
the shards are moved into the folder and dataset.json is written last. For every run: images_in = images + quarantined.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data import increment, leave_out, masks, reported
from mammoclip_jax.data.counts import counted, kinds, listed, quarantine_text
from mammoclip_jax.data.identity import Identity, shown_options
from mammoclip_jax.data.make import Failed, Job, Task, make, tasks, work, write, write_alone
from mammoclip_jax.data.manifest import COLUMNS, MEMORY_COLUMNS, Problem, SourceTable, other_views
from mammoclip_jax.data.pixels.preprocessing import LATER, Preprocessing
from mammoclip_jax.data.pool import ordered_map
from mammoclip_jax.data.private import settled
from mammoclip_jax.data.store.codecs import DEFAULT_CODEC, known
from mammoclip_jax.data.store.shards import SCHEMA_VERSION, Dataset, shard_name
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole, write_text
from mammoclip_jax.locks import locked

IMAGES_PER_SHARD = 256
FORGIVEN = ("absent", leave_out.STAGE)  # stages that are not held against `max_quarantined`
BUILDING = ".building"
PASSED_OVER = "passed_over.csv"
STOPPED = ".stopped"  # a run that was stopped before its tables changed; its records can still be used
_LOCK = ".lock"


def build(
    table: SourceTable,
    root: Path | str,
    out: Path | str,
    *,
    preprocessing: Preprocessing = Preprocessing(),
    shards: int = 0,
    workers: int = 1,
    codec: str = DEFAULT_CODEC,
    max_quarantined: float = 0.2,
    vocab_size: int = 4096,
    provenance: dict | None = None,
    key: str = "",
    runner: str = "",
    runner_options: Sequence[str] = (),
    headers: bool = True,
    recogniser: str = "",
) -> dict:
    """Writes the data set `table` (its files below `root`) to `out`, goes on with it, or brings it up to date.

    Args:
        shards: 0 for one per 256 images.
        workers: processes; 0 for none but this one, without protection against decoders that crash.
        max_quarantined: the fraction of images_in that may be quarantined; files that a partial copy lacks, and
            images that are left out by their flags (`table.leave_out`), do not count.
        provenance: {"source": name, "options": {...}, "version": package version}, written into dataset.json.
        key: file of the key that hashes private identifiers; "" for one of the data set's own.
        runner: a runner of Apache Beam, or "" for the local pool; `runner_options` are its flags.
        headers, recogniser: see `private.settled`, which says what becomes of private texts.

    Returns:
        images, studies, patients, boxes, texts, images_in, quarantined, absent and left_out (how many of the
        quarantined a partial copy lacks, and flags keep out), reasons {class: number}, passed_over {kind of file:
        number}, splits, flags {flag: images}, reports (`reported.counts`), up_to_date, other_program (another version
        made what was there: its records are not taken over), reused (records of an earlier run), made,
        deidentification {what took identities out of the texts: ...}.

    Raises:
        UserError: too many images were quarantined, none is left, `out` holds another data set, or the disk is full.
    """
    root, out = Path(table.root or root), Path(out)
    known(codec)
    images_in = len(table.rows) + len(table.problems)
    reports = reported.counts(table.rows)
    table, ran = settled(table, root, headers, recogniser)
    told = table.rows
    table, stamps = increment.present(table, root)
    identity = None if table.public_ids else Identity(out, key)
    hashed = (lambda text: identity.hash("key", text)) if identity else increment.plain_hash
    compared = other_views(table.rows) if preprocessing.scale == "breast" else None
    keys = increment.keys(table.rows, stamps, hashed, compared)
    wanted = _masks(table, root, keys)
    bounds = _bounds(len(table.rows), shards)
    parameters = {
        **shown_options(provenance or {}, identity),
        **preprocessing.as_dict(),
        "shards": shards,
        "codec": codec,
        "vocab_size": vocab_size,
        "schema_version": SCHEMA_VERSION,
        "shard_count": len(bounds) - 1,
        "leave_out": list(table.leave_out),
        "program": increment.program(),
        "manifest": hashed(
            "".join(keys)
            + table.rows.drop(columns=list(MEMORY_COLUMNS)).to_json(orient="split")
            + (json.dumps(ran) if identity else "")
            + " ".join(table.leave_out)
            + reported.without_file(told, table.rows)
        ),
    }
    there = _finished(out, parameters)
    other_program = bool(there) and there["program"] != parameters["program"]
    if table.rows.empty:
        raise UserError(f"no image to prepare: {listed(table.problems) or 'the source is empty'}")
    todo = tasks(table.rows, root, preprocessing, codec, table.leave_out)
    if there.get("manifest") == parameters["manifest"] and not _mended(todo, keys, increment.of_dataset(out), workers):
        dataset = Dataset.open(out)
        done = masks.settled(out, wanted, dataset.info["fingerprint"])
        # Of a run that died when it was done, or that knew of no masks.
        if not done or any((out / name).exists() for name in (BUILDING, STOPPED, _LOCK)):
            with _locked(out):
                masks.settle(out, wanted, dataset.index, dataset.info["fingerprint"], workers)
                _clean(out)
        counts = dataset.info["counts"]
        return counts | {
            "passed_over": kinds(table.passed_over),
            "up_to_date": True,
            "other_program": other_program,
            "reused": counts["images"],
            "made": 0,
            "deidentification": ran,
        }
    with _writing(out, parameters) as building:
        stored = _stored(out, building, parameters)
        jobs = _jobs(table.rows, todo, keys, bounds, building, identity, stored)
        _make_shards(jobs, workers, runner, runner_options)
        parts = [json.loads((building / f"{shard}.json").read_text()) for shard in range(len(jobs))]
        index = pd.DataFrame([row for part in parts for row in part["rows"]])
        problems = list(table.problems) if identity is None else [identity.problem(p) for p in table.problems]
        problems += [Problem(*problem) for part in parts for problem in part["problems"]]
        others = table.passed_over if identity is None else [identity.problem(p) for p in table.passed_over]
        counts = counted(index, problems, images_in) | {"passed_over": kinds(others), "reports": reports}
        _check_counts(counts, problems, max_quarantined, out, building)
        (out / PASSED_OVER).unlink(missing_ok=True)
        if others:
            write_text(out / PASSED_OVER, quarantine_text(others))
        reported.write_alone(out, told if identity is None else identity.rows(told), index)
        _write_folder(out, building, table, index, problems, counts, parameters, ran, wanted, workers)
    reused = int(index["key"].isin(set(stored)).sum())
    return counts | {
        "up_to_date": False,
        "other_program": other_program,
        "reused": reused,
        "made": len(index) - reused,
        "deidentification": ran,
    }


def _bounds(rows: int, shards: int) -> list[int]:
    """Where each shard begins and the last ends. Without a number of shards, more rows at the end change few."""
    if shards:
        return [shard * rows // shards for shard in range(shards + 1)]
    return [*range(0, rows, IMAGES_PER_SHARD), rows] if rows else [0, 0]


_MAY_CHANGE = ("version", "program", "manifest", "shard_count", "leave_out")


def _finished(out: Path, parameters: dict) -> dict:
    """The parameters of a finished data set in `out`; {} without one. UserError when it was made in another way."""
    if not (out / "dataset.json").is_file():
        return {}
    there = {"program": ""} | json.loads((out / "dataset.json").read_text()).get("parameters", {})
    _check_same(out, there, parameters)
    return there


def _stored(out: Path, building: Path, parameters: dict) -> dict[str, increment.Stored]:
    """The records of earlier runs, finished or stopped, that this program would make as they are and not leave out."""
    records = increment.of_dataset(out) if _same_program(_finished(out, parameters), parameters) else {}
    for stopped in (out / STOPPED, building):
        path = stopped / "parameters.json"
        if path.is_file() and _same_program(json.loads(path.read_text()), parameters):
            records |= increment.of_building(stopped, out)
    return {
        key: record
        for key, record in records.items()
        if not leave_out.reason(record.columns["flags"].split(","), parameters["leave_out"])
    }


def _same_program(there: dict, parameters: dict) -> bool:
    return there.get("program") == parameters["program"]


def _mended(tasks: list[Task], keys: list[str], stored: dict, workers: int) -> bool:
    """Whether an image that failed before can be made now: a decoder may have been installed since."""
    failed = [task for task, key in zip(tasks, keys) if key not in stored]
    if not failed:
        return False
    with contextlib.closing(ordered_map(make, failed, workers)) as results:
        return any(not isinstance(result, Failed) and hasattr(result, "record") for result in results)


def _check_same(out: Path, there: dict, asked: dict) -> None:
    fields = [field.name for field in dataclasses.fields(Preprocessing)]
    made_with = Preprocessing.from_dict({name: there[name] for name in fields if name in there})
    there = there | dataclasses.asdict(made_with)  # a folder made before there was a field
    asked = LATER | asked
    names = [name for name in asked if there.get(name) != asked[name] and name not in _MAY_CHANGE]
    if names:
        differences = "; ".join(f"{name} is {there.get(name)!r} there, {asked[name]!r} now" for name in names)
        raise UserError(f"{out} was prepared with other parameters: {differences}. Use another --out, or remove {out}.")


@contextlib.contextmanager
def _writing(out: Path, parameters: dict) -> Iterator[Path]:
    """The folder where the new shards are made, found or made, and for this process alone."""
    building = out / BUILDING
    marks = [out / "dataset.json", building / "parameters.json", out / STOPPED / "parameters.json"]
    ours = any(path.is_file() for path in marks)
    may_be_there = (BUILDING, STOPPED, _LOCK, "quarantine.csv")
    if out.exists() and not ours and any(path.name not in may_be_there for path in out.iterdir()):
        raise UserError(f"{out} is not empty and no data set. Use another --out, or empty it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            building.mkdir(exist_ok=True)
            _start(out, building, parameters)
            yield building
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}. What is finished is kept: make room or "
            "mend it, and run the same command again."
        ) from error


def _locked(out: Path) -> contextlib.AbstractContextManager[None]:
    return locked(out / _LOCK, f"preparing {out}", "use another --out")


def _start(out: Path, building: Path, parameters: dict) -> None:
    """Keeps what a stopped run with the same manifest has made; sets one with another aside, for its records."""
    path = building / "parameters.json"
    if path.is_file():
        there = json.loads(path.read_text())
        _check_same(out, there, parameters)
        if there.get("manifest") == parameters["manifest"] and _same_program(there, parameters):
            return
        if not (out / STOPPED).exists():
            os.replace(building, out / STOPPED)
        else:
            shutil.rmtree(building)
        building.mkdir()
    write_text(path, json.dumps(parameters))


def _jobs(
    rows: pd.DataFrame,
    tasks: list[Task],
    keys: list[str],
    bounds: list[int],
    building: Path,
    identity: Identity | None,
    stored: dict[str, increment.Stored],
) -> list[Job]:
    shown = (rows if identity is None else identity.rows(rows)).assign(key=keys)
    columns = [column for column in COLUMNS if column not in MEMORY_COLUMNS] + ["key"]
    public = shown[columns].to_dict("records")
    problems = [Problem(row.file, "", "", "", row.image, row.row) for row in rows.itertuples()]
    if identity is not None:
        problems = [identity.problem(problem) for problem in problems]
    jobs = []
    for shard, (start, end) in enumerate(itertools.pairwise(bounds)):
        mine = {key: stored[key] for key in keys[start:end] if key in stored}
        jobs.append(
            Job(
                building,
                shard,
                len(bounds) - 1,
                tuple(tasks[start:end]),
                tuple(public[start:end]),
                tuple(problems[start:end]),
                identity is not None,
                mine,
            )
        )
    return jobs


def _make_shards(jobs: list[Job], workers: int, runner: str, runner_options: Sequence[str]) -> None:
    todo = [job for job in jobs if not (job.folder / f"{job.shard}.json").is_file()]
    if runner:
        from mammoclip_jax.data import beam  # an extra

        beam.run(write_alone, todo, runner, runner_options)
        return
    total = sum(len(job.rows) for job in todo)
    with contextlib.closing(ordered_map(make, itertools.chain.from_iterable(map(work, todo)), workers)) as results:
        with tqdm(total=total, unit="image", desc="prepare", disable=None) as bar:
            for job in todo:
                write(job, results, bar.update)


def _check_counts(counts: dict, problems: list[Problem], max_quarantined: float, out: Path, building: Path) -> None:
    if counts["images_in"] != counts["images"] + counts["quarantined"]:
        raise AssertionError(f"the counts do not add up: {counts}")
    held = [problem for problem in problems if problem.stage not in FORGIVEN]
    if not counts["images"] or len(held) > max_quarantined * counts["images_in"]:
        # A finished set in the folder stays as it is, its quarantine.csv too.
        path = (building if (out / "dataset.json").is_file() else out) / "quarantine.csv"
        write_text(path, quarantine_text(problems))
        first = "; ".join(f"{problem.row or problem.file or problem.image}: {problem.reason}" for problem in held[:3])
        raise UserError(
            f"{counts['quarantined']} of {counts['images_in']} images were quarantined ({listed(problems)}), more "
            f"than max_quarantined={max_quarantined} allows; e.g. {first}. See {path}. Mend the files and run again "
            f"(only they are read again), or run with a higher --max_quarantined."
        )


def _masks(table: SourceTable, root: Path, keys: list[str]) -> masks.Wanted | None:
    """The masks that the source has of the rows, by their keys."""
    source = table.masks
    of = (
        {key: source.of[image] for key, image in zip(keys, table.rows["image"]) if image in source.of} if source else {}
    )
    return masks.Wanted(source, root, of) if source and of else None


def _write_folder(out, building, table, index, problems, counts, parameters, ran, wanted, workers) -> None:
    """Moves the shards into the folder; then the tables and, last, dataset.json. Can be repeated at any point."""
    (out / "dataset.json").unlink(missing_ok=True)
    names = [shard_name(shard, parameters["shard_count"]) for shard in range(parameters["shard_count"])]
    for name in names:
        if (building / name).is_file():
            os.replace(building / name, out / name)
    for path in out.glob("images-*.array_record"):
        if path.name not in names:
            path.unlink()
    write_text(out / "quarantine.csv", quarantine_text(problems))
    with whole(out / "index.parquet") as partial:
        index.to_parquet(partial, index=False)
    texts = [text for texts in _training_rows(index)["texts"] for text in texts]
    if texts:
        with whole(out / "tokenizer.json") as partial:
            tokenizer.train_wordpiece(texts, parameters["vocab_size"]).save(str(partial))
    masks.settle(out, wanted, index, fingerprint(index), workers)
    info = {
        "schema_version": SCHEMA_VERSION,
        "name": index["dataset"].iloc[0],
        "real": bool(index["real"].all()),
        "shards": parameters["shard_count"],
        "preprocessing": {
            field.name: parameters[field.name]
            for field in dataclasses.fields(Preprocessing)
            if field.name in parameters
        },
        "counts": counts,
        "provenance": {key: parameters[key] for key in ("source", "options", "version", "program") if key in parameters}
        | {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
        "licence": table.licence,
        "citation": table.citation,
        "public_ids": table.public_ids,
        "deidentification": ran,
        "fingerprint": fingerprint(index),
        "parameters": parameters,
    }
    write_text(out / "dataset.json", json.dumps(info, indent=2) + "\n")
    _clean(out)


def _clean(out: Path) -> None:
    for name in (BUILDING, STOPPED):
        shutil.rmtree(out / name, ignore_errors=True)


def fingerprint(index: pd.DataFrame) -> str:
    """16 hex digits of all that a data set holds: records and index, not the files' times."""
    table = index.drop(columns="key", errors="ignore").to_json(orient="split")
    return hashlib.sha256("".join(index["sha256"]).encode() + table.encode()).hexdigest()[:16]


def _training_rows(index: pd.DataFrame) -> pd.DataFrame:
    """The rows whose texts may shape the vocabulary: the training split, or all of a set that is only evaluated."""
    training = index[index["split"] == "train"]
    return training if len(training) else index
