"""Images per second of `prepare`'s per-image function, next to the loop that one would write first."""

import contextlib
import functools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pydicom

from mammoclip_jax.benchmarks import descendants
from mammoclip_jax.benchmarks.sample import Sample
from mammoclip_jax.benchmarks.timing import rates
from mammoclip_jax.data.image_files import is_picture
from mammoclip_jax.data.make import Made, Task, make
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.pool import ordered_map
from mammoclip_jax.data.store.codecs import DEFAULT_CODEC

BASELINE = "pydicom + OpenCV + PNG"
OURS = "prepare"
WORKERS = (1, 2)
_THRESHOLD = 40  # of 255, as Mammo-CLIP's preprocessing


def run(sample: Sample, *, height: int, width: int, repeats: int) -> list[dict]:
    """A row a function and number of processes: images_per_second, p10, p90, ratio to the loop with as many, scaling; and
    in CPU time, which other load disturbs less, cpu_ms an image and cpu_ratio.

    Starting the processes does not count.
    """
    preprocessing = Preprocessing(height=height, width=width)
    tasks = [Task(str(file), "", "", "", "[]", preprocessing, DEFAULT_CODEC) for file in sample.files]
    jobs = {
        BASELINE: (_plain_map, functools.partial(straightforward, height=height, width=width), list(sample.files)),
        OURS: (ordered_map, make, tasks),
    }
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, workers): [] for workers in WORKERS for name in jobs
    }
    for _ in range(repeats):
        for name, workers in seconds:
            seconds[name, workers].append(_timed(*jobs[name], workers))
    times, cpu = ({key: np.array(values)[:, side] for key, values in seconds.items()} for side in (0, 1))
    return [
        {
            "function": name,
            "workers": workers,
            **rates(times[name, workers], len(tasks)),
            "ratio": round(float(np.median(times[BASELINE, workers] / times[name, workers])), 2),
            "scaling": round(float(np.median(times[name, 1] / times[name, workers])), 2),
            "cpu_ms": round(float(np.median(cpu[name, workers])) / len(tasks) * 1e3, 1),
            "cpu_ratio": round(float(np.median(cpu[BASELINE, workers] / cpu[name, workers])), 2),
        }
        for name, workers in times
    ]


def _plain_map(function, items: list, workers: int):
    """As one would write it first: the standard pool, with nothing tuned but one thread of OpenCV in each process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(function, items)


def _timed(mapped, function, items: list, workers: int) -> tuple[float, float]:
    """Seconds for `items`, and CPU seconds of the processes, once these have done some others."""
    warm = [items[number % len(items)] for number in range(4 * workers + 2)]
    with contextlib.closing(mapped(function, warm + items, workers)) as results:
        for _ in warm:
            _whole(next(results))
        start, used = time.perf_counter(), descendants.cpu_seconds()
        for _ in items:  # and no further: then the processes end
            _whole(next(results))
        return time.perf_counter() - start, descendants.cpu_seconds() - used


def _whole(result) -> None:
    if not isinstance(result, (bytes, Made)):
        raise AssertionError(f"an image was not made: {result}")


def straightforward(file: Path, height: int, width: int) -> bytes:
    """File -> PNG: min-max to 8 bits, the bounding box of what is bright, stretched."""
    if is_picture(file.name):
        pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    else:
        pixels = pydicom.dcmread(file, force=True).pixel_array
    pixels = pixels.astype(np.float32)
    pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).astype(np.uint8)
    bright = pixels > _THRESHOLD
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    crop = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cv2.imencode(".png", cv2.resize(crop, (width, height)))[1].tobytes()
