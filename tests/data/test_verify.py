"""A small data set, broken in one way after another: each is found and named."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.build import fingerprint
from mammoclip_jax.data.counts import content, quarantine_text
from mammoclip_jax.data.manifest import Problem, frame
from mammoclip_jax.data.pixels import geometry
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store import shards
from mammoclip_jax.data.store.codecs import encode
from mammoclip_jax.data.text.tokenizer import train_wordpiece
from mammoclip_jax.data.verify import verify

SIZE = (24, 16)
BOX = [{"label": "mass", "box": [10.0, 12.0, 30.0, 40.0]}]


def pictures() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, SIZE).astype(np.uint8) for seed in range(4)]


def write(folder, images, index, info):
    for shard in range(2):
        writer = shards.ShardWriter(folder / shards.shard_name(shard, 2))
        for row in (2 * shard, 2 * shard + 1):
            record = encode(images[row], "delta")
            index.loc[row, "sha256"] = hashlib.sha256(record).hexdigest()
            writer.write(record)
        writer.close()
    save(folder, index, info)


def save(folder, index, info):
    """Index and description that agree."""
    index.to_parquet(folder / "index.parquet", index=False)
    info = info | {"fingerprint": fingerprint(index)}
    (folder / "dataset.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    rows = [
        dict(
            dataset="d",
            patient=f"p{row // 2}",
            study=f"s{row // 2}",
            image=f"i{row}",
            file="",
            laterality="L",
            view=("CC", "MLO")[row % 2],
            split=("train", "test")[row // 2],
            texts=["a mass"],
            labels={"mass": 1},
            boxes=BOX,
        )
        for row in range(4)
    ]
    transform = geometry.fit((100, 80), (5, 0, 95, 60), SIZE, laterality="R")
    placed = place_boxes(json.dumps(BOX), transform)
    index = frame(rows).drop(columns=["file", "row", "size"])
    index = index.assign(
        boxes=placed.original,
        boxes_canvas=placed.canvas,
        transform=transform.to_json(),
        height=24,
        width=16,
        bits=8,
        sha256="",
        flags="",
        shard=[0, 0, 1, 1],
        position=[0, 1, 0, 1],
    )
    problems = [Problem("f", "file", "file missing", "copy it")]
    (folder / "quarantine.csv").write_text(quarantine_text(problems))
    train_wordpiece(["a mass"], 200).save(str(folder / "tokenizer.json"))
    counts = {"images_in": 5, "images": 4, "quarantined": 1, "reasons": {"file missing": 1}} | content(index)
    preprocessing = Preprocessing(height=24, width=16).__dict__
    info = {
        "schema_version": 1,
        "name": "d",
        "real": True,
        "shards": 2,
        "preprocessing": preprocessing,
        "counts": counts,
        "provenance": {},
        "licence": "",
        "citation": "",
        "public_ids": True,
    }
    write(folder, pictures(), index, info)
    return folder


def test_a_whole_folder_passes(whole):
    result = verify(whole)
    assert result["ok"] and not result["faults"], result["faults"]
    assert result["checks"]["record checksum"] == result["checks"]["transform"] == 4
    assert result["checks"]["shard files"] == 2


def edit_info(folder, change):
    info = json.loads((folder / "dataset.json").read_text())
    change(info)
    (folder / "dataset.json").write_text(json.dumps(info))


def edit_index(change):
    def edit(folder):
        index = pd.read_parquet(folder / "index.parquet")
        for column in ("texts", "sections"):
            index[column] = [list(value) for value in index[column]]
        change(index)
        save(folder, index, json.loads((folder / "dataset.json").read_text()))

    return edit


def cell(column, value, row=1):
    def change(index):
        index.at[row, column] = value

    return edit_index(change)


def shard(records):
    def edit(folder):
        writer = shards.ShardWriter(folder / shards.shard_name(1, 2))
        for record in records:
            writer.write(record)
        writer.close()

    return edit


def flip_bytes(folder):
    file = folder / shards.shard_name(0, 2)
    data = bytearray(file.read_bytes())
    data[200:260] = bytes(60)
    file.write_bytes(data)


def moved_transform(index):
    values = json.loads(index.at[0, "transform"])
    index.at[0, "transform"] = json.dumps(values | {"offset": [3, 3]})


def cut_index(folder):
    (folder / "index.parquet").write_bytes((folder / "index.parquet").read_bytes()[:500])


A, B, OTHER = (encode(image, "delta") for image in (pictures()[2], pictures()[3], pictures()[0]))
BREAKS = {
    "no description": (lambda f: (f / "dataset.json").unlink(), "dataset.json", "dataset.json"),
    "no licence": (lambda f: edit_info(f, lambda i: i.pop("licence")), "dataset.json", "licence"),
    "version": (lambda f: edit_info(f, lambda i: i.update(schema_version=7)), "schema version", "7"),
    "parameters": (lambda f: edit_info(f, lambda i: i["preprocessing"].update(bits=9)), "preprocessing", "bits"),
    "image count": (lambda f: edit_info(f, lambda i: i["counts"].update(images=9)), "counts", "9 images"),
    "box count": (lambda f: edit_info(f, lambda i: i["counts"].update(boxes=1)), "counts", "1 boxes"),
    "fingerprint": (lambda f: edit_info(f, lambda i: i.update(fingerprint="0")), "fingerprint", "fingerprint"),
    "no index": (lambda f: (f / "index.parquet").unlink(), "index.parquet", "cannot be read"),
    "half an index": (cut_index, "index.parquet", "cannot be read"),
    "no column": (edit_index(lambda i: i.pop("flags")), "index columns", "flags"),
    "wrong type": (edit_index(lambda i: i.__setitem__("height", i["height"].astype(float))), "index types", "integers"),
    "no quarantine": (lambda f: (f / "quarantine.csv").unlink(), "quarantine", "cannot be read"),
    "quarantine line": (
        lambda f: (f / "quarantine.csv").write_text("file,image,stage,reason,remedy,row\n"),
        "quarantine",
        "0 lines",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer", "cannot be loaded"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer", "cannot be loaded"),
    "twice an image": (cell("image", "i0"), "image ids", "not its own"),
    "split": (cell("split", "dev"), "splits", "dev"),
    "torn patient": (cell("split", "val"), "patients", "more than one"),
    "laterality": (cell("laterality", "left"), "laterality", "left"),
    "blank text": (cell("texts", [" "]), "texts", "blank"),
    "labels": (cell("labels", "[1]"), "labels", "no JSON object"),
    "bad labels": (cell("labels", "{"), "labels", "cannot be read"),
    "box outside": (cell("boxes", json.dumps([{"label": "mass", "box": [10, 10, 90, 20]}])), "boxes", "not inside"),
    "box moved": (cell("boxes_canvas", "[]"), "boxes", "not where"),
    "transform moved": (edit_index(moved_transform), "boxes", "not where"),
    "transform": (cell("transform", "{}"), "transform", "cannot be read"),
    "canvas": (cell("height", 25), "transform", "canvas"),
    "no shard": (lambda f: (f / shards.shard_name(1, 2)).unlink(), "shard files", "missing"),
    "no shard at all": (lambda f: (f / shards.shard_name(1, 2)).write_bytes(b"?" * 99), "shard records", ""),
    "short shard": (shard([A]), "shard records", "holds 1"),
    "swapped records": (shard([B, A]), "record checksum", "not the one"),
    "no record": (shard([A, b"not a record of any kind"]), "record decodes", "not an image record"),
    "damaged shard": (flip_bytes, "record checksum", "damaged"),
    "other size": (shard([A, encode(np.eye(9, dtype=np.uint8), "raw")]), "image as described", "(9, 9, 8)"),
    "blank image": (shard([A, encode(np.zeros(SIZE, np.uint8), "raw")]), "image not constant", "alike"),
    "place": (cell("position", 7), "places", "no record 7"),
    "shared place": (cell("position", 0), "places", "share"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_found_and_named(whole, tmp_path, name):
    folder = shutil.copytree(whole, tmp_path / "broken")
    edit, check, words = BREAKS[name]
    edit(folder)
    result = verify(folder)
    assert not result["ok"]
    assert any(
        fault["check"] == check and words in fault["problem"] + fault["where"] and fault["remedy"]
        for fault in result["faults"]
    ), result["faults"]
