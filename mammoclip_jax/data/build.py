"""Manifest -> data set folder, in parallel and resumable.

Rows are dealt to shards in their order, so the same manifest gives the same shards whatever the number of workers. A
shard appears under its name when whole, then a side file in `.building/` says what is in it; a run that is killed goes
on with the shards that lack one. dataset.json is written last. For every run: images_in = images + quarantined.
"""

import collections
import csv
import dataclasses
import datetime
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Iterator, NamedTuple

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data import dicom, tokenizer
from mammoclip_jax.data.identity import Identity
from mammoclip_jax.data.manifest import COLUMNS, Problem, SourceTable, breast_keys, checked
from mammoclip_jax.data.pool import WorkerLost, ordered_map
from mammoclip_jax.data.render import Preprocessing, place_boxes, render
from mammoclip_jax.data.shards import (
    CODECS, SCHEMA_VERSION, Dataset, ShardWriter, encode, replace, shard_name, write_text,
)
from mammoclip_jax.errors import UserError

IMAGES_PER_SHARD = 256
BUILDING = ".building"


class Task(NamedTuple):
    """What a worker needs of a row."""

    path: str
    laterality: str
    view: str
    vendor: str
    boxes: str
    preprocessing: Preprocessing
    codec: str


class Made(NamedTuple):
    """What a worker makes of a row: a record and the index columns that come of it."""

    record: bytes
    columns: dict


class Failed(NamedTuple):
    """Why a worker made nothing."""

    stage: str
    reason: str
    remedy: str


def make(task: Task) -> Made | Failed:
    """One image, in a worker: file -> record. Never raises for what is in the file."""
    try:
        rendered = render(task.path, task.preprocessing, task.laterality, task.view)
    except dicom.Unreadable as error:
        return Failed(error.stage, error.reason, error.remedy)
    except MemoryError:
        return Failed("decode", "out of memory", "use fewer workers")
    except Exception as error:      # a long job outlives one odd file; the table says that this is ours to mend
        return Failed("pixels", f"unexpected error: {type(error).__name__}: {error}", "report it, with the file's kind")
    try:
        boxes = place_boxes(task.boxes, rendered.transform)
    except ValueError as error:
        return Failed("boxes", f"box outside image: {error}", "table and file do not belong together; correct the box")
    record = encode(rendered.image, task.codec)
    return Made(record, {
        "laterality": rendered.laterality, "view": rendered.view, "vendor": task.vendor or rendered.fields.vendor,
        "boxes": boxes.original, "boxes_canvas": boxes.canvas, "transform": rendered.transform.to_json(),
        "height": rendered.image.shape[0], "width": rendered.image.shape[1], "bits": task.preprocessing.bits,
        "sha256": hashlib.sha256(record).hexdigest(), "flags": ",".join(rendered.flags + boxes.flags),
    })


def build(
    table: SourceTable, root: Path | str, out: Path | str, *, preprocessing: Preprocessing = Preprocessing(),
    shards: int = 0, workers: int = 1, codec: str = "zstd", max_quarantined: float = 0.2, vocab_size: int = 4096,
    provenance: dict | None = None,
) -> dict:
    """Writes the data set `table` (its files below `root`) to `out`, or goes on with it.

    Args:
        shards: 0 for one per 256 images.
        max_quarantined: the fraction of images_in that may be quarantined; files that a partial copy lacks
            (stage "absent") do not count.
        provenance: {"source": name, "options": {...}, "version": package version}, written into dataset.json.

    Returns:
        images, studies, patients, boxes, texts, images_in, quarantined, absent (how many of the
        quarantined a partial copy lacks), reasons {class: number}, splits, up_to_date.

    Raises:
        UserError: too many images were quarantined, none is left, or `out` holds another data set.
    """
    root, out = Path(table.root or root), Path(out)
    if codec not in CODECS:
        raise UserError(f"there is no codec {codec!r}; choose one of {', '.join(CODECS)}")
    images_in = len(table.rows) + len(table.problems)
    table = checked(table)
    shards = shards or max(1, -(-len(table.rows) // IMAGES_PER_SHARD))
    parameters = _parameters(table, preprocessing, shards, codec, vocab_size, provenance or {})
    if _finished(out, parameters):
        return Dataset.open(out).info["counts"] | {"up_to_date": True}
    if table.rows.empty:
        raise UserError(f"no image to prepare: {_summary(table.problems) or 'the source is empty'}")

    identity = None if table.public_ids else Identity(out)
    # The side files name files and images: with private identifiers they stay out of the data set.
    building = _start(out, (identity.folder if identity else out) / BUILDING, parameters)
    _make_shards(table.rows, root, out, building, preprocessing, shards, workers, codec, identity)
    parts = [json.loads((building / f"{shard}.json").read_text()) for shard in range(shards)]
    index = pd.DataFrame([row for part in parts for row in part["rows"]])
    problems = list(table.problems) + [Problem(*problem) for part in parts for problem in part["problems"]]
    _write_quarantine(out, problems, identity)
    counts = _counts(index, problems, images_in)
    _check_counts(counts, problems, max_quarantined, out)
    _write_folder(out, table, index, counts, parameters, vocab_size, identity)
    shutil.rmtree(building)
    return counts | {"up_to_date": False}


def _parameters(table, preprocessing, shards, codec, vocab_size, provenance) -> dict:
    """What the bytes of a data set depend on: a run goes on with, or accepts, only a folder made with the same."""
    rows = hashlib.sha256(table.rows.to_json(orient="split").encode()).hexdigest()
    return {
        **provenance, **dataclasses.asdict(preprocessing), "shards": shards, "codec": codec, "vocab_size": vocab_size,
        "rows": len(table.rows), "manifest": rows[:16], "schema_version": SCHEMA_VERSION,
    }


def _finished(out: Path, parameters: dict) -> bool:
    """Whether `out` is finished with these parameters. UserError when it was made with others."""
    if not (out / "dataset.json").is_file():
        return False
    _check_same(out, json.loads((out / "dataset.json").read_text()).get("parameters", {}), parameters)
    return True


def _check_same(out: Path, there: dict, asked: dict) -> None:
    names = [name for name in asked if there.get(name) != asked[name] and name != "version"]
    if names:
        differences = "; ".join(f"{name} is {there.get(name)!r} there, {asked[name]!r} now" for name in names)
        raise UserError(f"{out} was prepared with other parameters: {differences}. Use another --out, or remove {out}.")


def _start(out: Path, building: Path, parameters: dict) -> Path:
    """The folder of side files, made or found."""
    if (building / "parameters.json").is_file():
        _check_same(out, json.loads((building / "parameters.json").read_text()), parameters)
        return building
    if out.exists() and any(path != building for path in out.iterdir()):
        raise UserError(f"{out} is not empty and no data set. Use another --out, or empty it.")
    out.mkdir(parents=True, exist_ok=True)
    building.mkdir(parents=True, exist_ok=True)
    write_text(building / "parameters.json", json.dumps(parameters))
    return building


def _make_shards(rows, root, out, building, preprocessing, shards, workers, codec, identity) -> None:
    bounds = [shard * len(rows) // shards for shard in range(shards + 1)]
    todo = [shard for shard in range(shards) if not (building / f"{shard}.json").is_file()]
    total = sum(bounds[shard + 1] - bounds[shard] for shard in todo)

    def tasks() -> Iterator[Task]:
        for shard in todo:
            for row in rows.iloc[bounds[shard]:bounds[shard + 1]].itertuples():
                path = str(root / row.file)
                yield Task(path, row.laterality, row.view, row.vendor, row.boxes, preprocessing, codec)

    results = ordered_map(make, tasks(), workers)
    with tqdm(total=total, unit="image", desc="prepare", disable=None) as bar:
        for shard in todo:
            part = rows.iloc[bounds[shard]:bounds[shard + 1]]
            done = _write_shard(out / shard_name(shard, shards), shard, part, results, identity, bar)
            write_text(building / f"{shard}.json", json.dumps(done))


def _write_shard(path: Path, shard: int, rows: pd.DataFrame, results: Iterator, identity, bar) -> dict:
    """Takes the results of the rows in their order; returns the side file: index rows and problems."""
    writer = ShardWriter(path)
    public = rows if identity is None else identity.rows(rows)
    written, problems = [], []
    for (_, row), shown in zip(rows.iterrows(), public.to_dict("records")):
        result = next(results)
        bar.update()
        if isinstance(result, WorkerLost):
            result = Failed("decode", result.reason, "the file is damaged; copy it again")
        if isinstance(result, Failed):
            problems.append(Problem(row["file"], result.stage, result.reason, result.remedy, row["image"]))
            continue
        writer.write(result.record)
        kept = {column: shown[column] for column in COLUMNS if column != "file"}
        written.append(kept | result.columns | {"shard": shard, "position": len(written)})
    writer.close()
    return {"rows": written, "problems": problems}


def _write_quarantine(out: Path, problems: list[Problem], identity: Identity | None) -> None:
    """quarantine.csv; with private identifiers the data set shows hashes, and the private folder the names."""
    shown = problems if identity is None else [identity.problem(problem) for problem in problems]
    _write_problems(out / "quarantine.csv", shown)
    if identity is not None:
        _write_problems(identity.folder / "quarantine.csv", problems)


def _write_problems(path: Path, problems: list[Problem]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "image", "stage", "reason", "remedy"])
    writer.writerows([p.file, p.image, p.stage, p.reason, p.remedy] for p in problems)
    write_text(path, text.getvalue())


def _counts(index: pd.DataFrame, problems: list[Problem], images_in: int) -> dict:
    kinds = collections.Counter(problem.kind for problem in problems)
    counts = {"images_in": images_in, "images": len(index), "quarantined": len(problems),
              "absent": sum(problem.stage == "absent" for problem in problems), "reasons": dict(sorted(kinds.items()))}
    if len(index):
        breasts = pd.DataFrame({"breast": breast_keys(index), "text": index["texts"]}).explode("text").dropna()
        counts |= {
            "studies": index["study"].nunique(), "patients": index["patient"].nunique(),
            "boxes": int(index["boxes"].map(lambda boxes: len(json.loads(boxes))).sum()),
            "texts": len(breasts.drop_duplicates()), "splits": index["split"].value_counts().sort_index().to_dict(),
        }
    return counts


def _summary(problems: list[Problem]) -> str:
    kinds = collections.Counter(problem.kind for problem in problems)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())


def _check_counts(counts: dict, problems: list[Problem], max_quarantined: float, out: Path) -> None:
    if counts["images_in"] != counts["images"] + counts["quarantined"]:
        raise AssertionError(f"the counts do not add up: {counts}")
    held = [problem for problem in problems if problem.stage != "absent"]
    if not counts["images"] or len(held) > max_quarantined * counts["images_in"]:
        first = "; ".join(f"{problem.file or problem.image}: {problem.reason}" for problem in held[:3])
        raise UserError(
            f"{counts['quarantined']} of {counts['images_in']} images were quarantined ({_summary(problems)}), more "
            f"than max_quarantined={max_quarantined} allows; e.g. {first}. See {out / 'quarantine.csv'}. Mend the "
            f"files, remove {out} and prepare again; or run again with a higher --max_quarantined."
        )


def _write_folder(out, table, index, counts, parameters, vocab_size, identity) -> None:
    """index.parquet, tokenizer.json and, last, dataset.json."""
    if identity is not None:
        files = zip(table.rows["file"], table.rows["image"])
        hashed = [(identity.hash("file", file), identity.hash("image", image), file) for file, image in files]
        extra = [(identity.hash("file", p.file), identity.hash("image", p.image), p.file) for p in table.problems]
        identity.write_map(hashed + extra)
    partial = out / "index.parquet.partial"
    index.to_parquet(partial, index=False)
    replace(partial, out / "index.parquet")
    texts = [text for texts in _training_rows(index)["texts"] for text in texts]
    if texts:
        tokenizer.train_wordpiece(texts, vocab_size).save(str(out / "tokenizer.json"))
    digest = hashlib.sha256("".join(index["sha256"]).encode() + index.to_json(orient="split").encode())
    info = {
        "schema_version": SCHEMA_VERSION,
        "name": index["dataset"].iloc[0],
        "real": bool(index["real"].all()),
        "shards": parameters["shards"],
        "preprocessing": {field.name: parameters[field.name] for field in dataclasses.fields(Preprocessing)},
        "counts": counts,
        "provenance": {key: parameters[key] for key in ("source", "options", "version") if key in parameters}
        | {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
        "licence": table.licence,
        "citation": table.citation,
        "fingerprint": digest.hexdigest()[:16],
        "parameters": parameters,
    }
    write_text(out / "dataset.json", json.dumps(info, indent=2) + "\n")


def _training_rows(index: pd.DataFrame) -> pd.DataFrame:
    """The rows whose texts may shape the vocabulary: the training split, or all of a set that is only evaluated."""
    training = index[index["split"] == "train"]
    return training if len(training) else index
