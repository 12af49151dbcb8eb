"""How long the list of a large data set takes: `PYTHONPATH=tests/evaluation python tests/viewer/measure_list.py`."""

import time

import numpy as np
import pandas as pd
from small_set import dataset

from mammoclip_jax.viewer.catalogue import Catalogue, Filters

COPIES, PATIENTS = 125, 200


def main() -> None:
    """Prints seconds of opening, of three selections, and of a part of the list and an exam."""
    data, parts = dataset(PATIENTS), []
    for copy in range(COPIES):
        part = data.index.copy()
        for column in ("patient", "study", "image"):
            part[column] = f"{copy}-" + part[column]
        parts.append(part)
    data.index = pd.concat(parts, ignore_index=True)
    start = time.perf_counter()
    catalogue = Catalogue(data)
    print(f"{len(data.index):,} images in {len(catalogue.exams):,} exams opened: {time.perf_counter() - start:.2f} s")
    score = np.random.default_rng(0).random(len(data.index))
    for what, filters, order in (
        ("ordered by score", Filters(), "highest"),
        ("with a mass, wrong first", Filters(labels={"mass": "1"}), "wrong first"),
        ("words of a report, the first time", Filters(text="breast 17L"), "as stored"),
        ("words of a report", Filters(text="in breast"), "as stored"),
    ):
        start = time.perf_counter()
        chosen = catalogue.select(filters, order, score, 1 - score)
        print(f"{what}: {len(chosen):,} exams, {time.perf_counter() - start:.3f} s")
    start = time.perf_counter()
    for exam in chosen[:100].tolist():
        catalogue.summary(exam)
    print(f"100 lines of the list: {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    main()
