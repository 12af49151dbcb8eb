"""Images per second of the training input (shards, Grain, batches) for each codec, next to a loop over PNG files.

Freed memory is kept, for the loop too, as `pretrain` does.
"""

import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mammoclip_jax.benchmarks.sample import Sample
from mammoclip_jax.benchmarks.timing import interleaved, rates
from mammoclip_jax.data.batches.image_text import Options, train_dataset
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.data.store.codecs import CODECS, encode
from mammoclip_jax.data.store.shards import SCHEMA_VERSION, Dataset, ShardWriter, shard_name
from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece
from mammoclip_jax.memory import keep_freed_memory

BASELINE = "png files, cv2.imread"
RECORDS, BATCH = 32, 8
IMAGES = 6 * RECORDS  # of one timing
WARM = 3  # batches before it, more than are read ahead
TEXT = "There is a mass in the breast."


def run(sample: Sample, *, height: int, width: int, repeats: int) -> list[dict]:
    """A row a number of bits, codec and number of reading threads: images_per_second, p10, p90, ratio to the loop."""
    keep_freed_memory()
    rows = []
    tokenizer = Tokenize(train_wordpiece([TEXT], 300))
    for bits in (8, 16):
        preprocessing = Preprocessing(height=height, width=width, bits=bits)
        images = [render(file, preprocessing).image for file in sample.files]
        with tempfile.TemporaryDirectory() as scratch:
            loops = {(BASELINE, 1): _png_loop(Path(scratch), images)}
            for codec in CODECS:
                dataset = _dataset(Path(scratch, codec), images, codec, preprocessing)
                for threads in (1, 4):
                    loops[codec, threads] = _grain_loop(dataset, tokenizer, threads)
            seconds = interleaved(loops, repeats)
        rows += [
            {
                "bits": bits,
                "codec": codec,
                "threads": threads,
                **rates(seconds[codec, threads], IMAGES),
                "ratio": round(float(np.median(seconds[BASELINE, 1] / seconds[codec, threads])), 2),
            }
            for codec, threads in loops
        ]
    return rows


def _png_loop(folder: Path, images: list[np.ndarray]):
    files = []
    for number, image in enumerate(images):
        files.append(str(folder / f"{number}.png"))
        cv2.imwrite(files[-1], image)

    def loop():
        for start in range(0, IMAGES, BATCH):
            numbers = range(start, start + BATCH)
            np.stack([cv2.imread(files[number % len(files)], cv2.IMREAD_UNCHANGED) for number in numbers])

    return loop


def _grain_loop(dataset: Dataset, tokenizer: Tokenize, threads: int):
    options = Options(text_length=16, views=1, texts=1)
    batches = train_dataset([dataset], tokenizer, options, batch_size=BATCH, seed=0, read_threads=threads)

    def loop() -> float:
        iterator = iter(batches)  # a new one, that has read nothing ahead while others were timed
        for _ in range(WARM):  # from here on as much is read ahead at the end as at the beginning
            next(iterator)
        start = time.perf_counter()
        for _ in range(IMAGES // BATCH):
            next(iterator)
        seconds = time.perf_counter() - start
        iterator.close()
        return seconds

    return loop


def _dataset(folder: Path, images: list[np.ndarray], codec: str, preprocessing: Preprocessing) -> Dataset:
    """RECORDS records, each a breast of its own."""
    folder.mkdir()
    writer = ShardWriter(folder / shard_name(0, 1))
    records = [encode(image, codec) for image in images]
    for number in range(RECORDS):
        writer.write(records[number % len(records)])
    writer.close()
    rows = [
        {
            "dataset": "benchmark",
            "patient": str(number),
            "study": str(number),
            "image": str(number),
            "laterality": "L",
            "view": "CC",
            "split": "train",
            "texts": [TEXT],
            "sections": ["caption"],
            "shard": 0,
            "position": number,
        }
        for number in range(RECORDS)
    ]
    pd.DataFrame(rows).to_parquet(folder / "index.parquet")
    form = {"height": preprocessing.height, "width": preprocessing.width, "bits": preprocessing.bits}
    info = {"schema_version": SCHEMA_VERSION, "shards": 1, "counts": {"images": RECORDS}, "preprocessing": form}
    (folder / "dataset.json").write_text(json.dumps(info))
    return Dataset.open(folder)
