"""What the work on tables and features costs as data sets grow: time, and memory, over several numbers of images.

All of them synthetic: two views of both breasts of each exam, two texts of each breast, a box on every tenth image. Each
measurement is a process of its own, started by `run`, so that its peak is its own: python -m mammoclip_jax.benchmarks.growth.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import cloudpickle  # what Grain pickles with
import numpy as np
import pandas as pd

from mammoclip_jax.benchmarks import descendants
from mammoclip_jax.benchmarks.resident import Peak
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

READERS = 16  # processes
DIMENSIONS = 512  # of an embedding
FEATURES = 2048  # that a probe learns from
_PLACES = ("upper outer", "upper inner", "lower outer", "lower inner", "retroareolar", "central")
_FINDINGS = ("mass", "asymmetry", "cluster of calcifications", "distortion", "lymph node", "scar")
_WORDS = (
    "irregular",
    "oval",
    "round",
    "spiculated",
    "indistinct",
    "stable",
    "new",
    "coarse",
    "fine",
    "benign",
    "dense",
)


def texts(count: int, seed: int = 0) -> list[str]:
    """Findings of as many breasts; nearly all differ."""
    drawn = np.random.default_rng(seed).integers(0, 2**31, (count, 8)).tolist()
    return [
        f"There is a {_WORDS[a % 11]} {_WORDS[b % 11]} {_FINDINGS[c % 6]} in the {_PLACES[d % 6]} breast measuring {e % 60} mm "
        f"at {f % 12 + 1} o'clock, {g % 80} mm from the nipple. Compared with {1990 + h % 30} it is {_WORDS[(a + h) % 11]}."
        for a, b, c, d, e, f, g, h in drawn
    ]


def index(images: int, seed: int = 0) -> pd.DataFrame:
    """The columns of index.parquet, and those of a manifest, of so many images."""
    rng = np.random.default_rng(seed)
    exam, place = np.divmod(np.arange(images), 4)
    breasts = (images + 1) // 2
    found = rng.integers(0, (2, 2, 4, 7, 50), (breasts, 5)).tolist()
    labels = [
        json.dumps({"mass": a, "calcification": b, "density": "ABCD"[c], "birads": d, "age": 40 + e})
        for a, b, c, d, e in found
    ]
    said = [[text, f"BI-RADS {own[3]}."] for text, own in zip(texts(breasts, seed), found)]
    corners = np.round(rng.random((images, 2)) * 400, 2).tolist()
    boxed = (rng.random(images) < 0.1).tolist()
    boxes = [
        json.dumps([{"label": "mass", "box": [*own, 500.0, 600.0]}]) if b else "[]" for own, b in zip(corners, boxed)
    ]
    split = np.array(["train", "val", "test"])[np.searchsorted([0.6, 0.7], (exam // 2 * 0.61803) % 1)]
    numbers = range(images)
    return pd.DataFrame(
        {
            "dataset": "synthetic",
            "patient": [f"p{number // 2}" for number in exam.tolist()],
            "study": [f"s{number}" for number in exam.tolist()],
            "image": [f"i{number}" for number in numbers],
            "file": [f"{number // 1000}/i{number}.dcm" for number in numbers],
            "row": [f"table.csv:{number}" for number in numbers],
            "size": "",
            "laterality": np.array(["L", "R"])[place // 2],
            "view": np.array(["CC", "MLO"])[place % 2],
            "split": split,
            "vendor": "maker",
            "real": False,
            "texts": [list(said[number // 2]) for number in numbers],
            "sections": [["findings", "impression"] for _ in numbers],
            "identities": [[] for _ in numbers],
            "parts": "{}",
            "labels": [labels[number // 2] for number in numbers],
            "boxes": boxes,
            "boxes_canvas": boxes,
            "flags": "",
            "shard": np.arange(images) // 256,
            "position": np.arange(images) % 256,
        }
    ).astype({name: "str" for name in ("dataset", "laterality", "view", "split", "size", "vendor", "parts", "flags")})


class _Images(Dataset):
    """A data set without shards: the 64 bits of an image are its number."""

    def read(self, row: int) -> np.ndarray:
        return np.frombuffer(np.array([row] * 8, np.int64).tobytes(), np.uint8).reshape(8, 8)


def _dataset(images: int, split: str = "") -> Dataset:
    table = index(images)
    form = {"height": 8, "width": 8, "bits": 8}
    info = {"name": "synthetic", "shards": 1, "real": False, "fingerprint": "0", "preprocessing": form}
    return _Images("synthetic", info, table.assign(split=split) if split else table)


class _Model:
    """Vectors that follow from the number of the image, or of the text, as a model's would; it takes no memory."""

    kind, logit_scale = "dual encoder", 1.0

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """As many as a ResNet-50 or EfficientNet-B5 has, of the order of 2,000."""
        return _unit(np.ascontiguousarray(images).view(np.int64)[:, 0, 0], FEATURES)

    def embed_image(self, images: np.ndarray) -> np.ndarray:
        return _unit(np.ascontiguousarray(images).view(np.int64)[:, 0, 0])

    def embed_text(self, said: Sequence[str]) -> np.ndarray:
        return _unit(np.array([sum(map(ord, text)) for text in said]))


def _unit(numbers: np.ndarray, dimensions: int = DIMENSIONS) -> np.ndarray:
    vectors = np.stack([np.random.default_rng(int(n)).standard_normal(dimensions, np.float32) for n in numbers])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _breasts(images: int, **options) -> Callable:
    from mammoclip_jax.data.batches.breasts import breasts
    from mammoclip_jax.data.batches.texts import TextOptions

    dataset = _dataset(images, "train")
    if options.get("own_side"):
        _join_reports(dataset.index)
    return lambda: breasts([dataset], "train", text=TextOptions(**options))


def _join_reports(table: pd.DataFrame) -> None:
    """Both breasts of an exam have one report."""
    texts = table["texts"].tolist()
    ends = range(0, len(texts), 4)
    joined = [
        [f"LEFT BREAST: {texts[i][0]} RIGHT BREAST: {texts[min(i + 2, len(texts) - 1)][0]}", *texts[i][1:]]
        for i in ends
    ]
    table["texts"] = [joined[row // 4] for row in range(len(texts))]


def _examples(images: int, unit: str) -> Callable:
    from mammoclip_jax.data.batches.labelled import Target, examples

    dataset = _dataset(images, "train")
    return lambda: examples([dataset], "train", Target(("mass", "calcification")), unit)


def _check(images: int) -> Callable:
    from mammoclip_jax.data.check import check
    from mammoclip_jax.data.manifest import COLUMNS, SourceTable

    table = SourceTable(index(images)[list(COLUMNS)], [], "", "", True)
    return lambda: check(table, "there is no such folder")


def _near(count: int) -> Callable:
    from mammoclip_jax.data.text import duplicates

    said = texts(count)
    return lambda: duplicates.near(said)


def _readers(images: int) -> Callable:
    """All that Grain's reading processes take until each has given its first batch: they are started, sent the stream, and
    open it."""
    import grain
    from absl import flags

    from mammoclip_jax.data.batches.image_text import Options, train_dataset
    from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece

    dataset, tokenize = _dataset(images, "train"), Tokenize(train_wordpiece(texts(100), 400))
    stream = train_dataset([dataset], tokenize, Options(text_length=8), batch_size=2, seed=0, read_threads=0)

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its own

    def start() -> dict:
        batches = iter(stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=READERS)))
        for _ in range(READERS):  # in turn
            next(batches)
        used = descendants.cpu_seconds()
        batches.close()
        return {"bytes": len(cloudpickle.dumps(stream)), "readers_cpu_seconds": round(used, 2)}

    return start


def _retrieval(count: int) -> Callable:
    from mammoclip_jax.evaluation.metrics import ranking

    queries, gallery, numbers = _unit(np.arange(count)), _unit(np.arange(count) + count), np.arange(count)
    return lambda: ranking.standing(queries, gallery, numbers, numbers)


def _zero_shot(images: int) -> Callable:
    from mammoclip_jax.evaluation.evaluators.zero_shot import zero_shot

    dataset = _dataset(images, "test")
    return lambda: zero_shot(_Model(), dataset, labels=("mass",), resamples=200)


def _probe(images: int, representation: str) -> Callable:
    from mammoclip_jax.evaluation.evaluators.probe import linear_probe

    dataset = _dataset(images)
    return lambda: linear_probe(_Model(), dataset, label="mass", representation=representation, resamples=200)


# What is measured, and of how many of the images: a fifth where a data set's test part is evaluated.
WORKS: dict[str, tuple[Callable[[int], Callable], int]] = {
    "breasts": (_breasts, 1),
    "captions": (lambda images: _breasts(images, captions="mammo_clip"), 1),
    "own side": (lambda images: _breasts(images, captions="mammo_clip", own_side=True), 1),
    "labelled images": (lambda images: _examples(images, "image"), 1),
    "labelled breasts": (lambda images: _examples(images, "breast"), 1),
    "labelled exams": (lambda images: _examples(images, "exam"), 1),
    "readers": (_readers, 1),
    "check": (_check, 1),
    "near duplicates": (_near, 1),
    "retrieval": (_retrieval, 5),
    "zero-shot": (_zero_shot, 5),
    "probe": (lambda images: _probe(images, "embedding"), 5),
    "probe of features": (lambda images: _probe(images, "pooled"), 5),
}


def run(sizes: Sequence[int], works: Sequence[str] = ()) -> list[dict]:
    """A row for each work (all unless given) and size: items, seconds, CPU seconds, peak_gib of its process over what
    the input takes; of readers the bytes that each is sent, and the CPU seconds of all of them; and the exponent by which
    the CPU seconds grew since the size before.

    Raises:
        UserError: fewer than two sizes, or not ascending; an unknown work, or one that failed.
    """
    for work in works:
        check_name(work, WORKS, "work of --works")
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)) or sizes[0] < 100:
        raise UserError(
            f"--sizes={','.join(map(str, sizes))}: give two or more numbers of images, ascending, from 100."
        )
    rows = []
    for work in works or WORKS:
        before = None
        for size in sizes:
            command = [sys.executable, "-m", "mammoclip_jax.benchmarks.growth", work, str(size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise UserError(f"{work} of {size} images ended with status {done.returncode}; see above.")
            row = json.loads(done.stdout.splitlines()[-1])
            exponent = before and round(_exponent(before, row), 2)
            rows.append({"work": work, "images": size} | row | {"exponent": exponent})
            before = row
    return rows


def _exponent(before: dict, after: dict) -> float:
    return math.log(max(after["cpu_seconds"], 0.01) / max(before["cpu_seconds"], 0.01)) / math.log(
        after["items"] / before["items"]
    )


def measure(work: str, images: int) -> dict:
    """One row's figures, in this process."""
    make, part = WORKS[work]
    items = images // part
    if work != "readers":  # whose start is what they import
        make(100)()  # imports, and what is loaded once
    begin = make(items)
    peak = Peak()
    resident = peak.bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    made = begin()
    return {
        "items": items,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gib": round((peak.bytes() - resident) / 2**30, 2),
        "bytes": None,
        "readers_cpu_seconds": None,
    } | (made if work == "readers" else {})


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
