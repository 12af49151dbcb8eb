"""Timing side by side: on a machine that others use too, only ratios within one run mean something."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds [repeats] of each function, called in turn, after one call of each that does not count.

    A function that returns a float has measured its seconds itself.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            own = function()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def rates(seconds: np.ndarray, images: int) -> dict[str, float]:
    """Images per second: the median of the repeats, and the 10th and 90th percentile."""
    low, median, high = np.percentile(images / seconds, [10, 50, 90])
    return {"images_per_second": round(median, 1), "p10": round(low, 1), "p90": round(high, 1)}
