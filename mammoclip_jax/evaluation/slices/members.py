"""Which images are in the slices that were found: a table for who wants to look at them (`python -m mammoclip_jax.view`).

| column            | is                                                                                    |
|-------------------|---------------------------------------------------------------------------------------|
| dataset, image    | as in the data set's index                                                            |
| part              | val or test                                                                           |
| truth, score      | of the label; the classifier's score                                                  |
| right             | 1 where the classifier decides rightly at its threshold, else 0                       |
| one a slice       | its name: 1 for an image of its class that is in it, else 0                           |
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation.slices.confirmation import SLICE
from mammoclip_jax.evaluation.slices.run import Findings, Part, members

TABLE = "images"
FILE = f"slices/{TABLE}.csv"  # below the results of `slices`, a folder for each data set
IDENTITY = ("dataset", "image")
SHARED = (*IDENTITY, "part", "truth", "score", "right")


def table(
    findings: Findings,
    parts: Mapping[str, Part],
    rows: Mapping[str, np.ndarray],
    index: pd.DataFrame,
    title: Callable[[Mapping[str, Any]], str],
) -> pd.DataFrame:
    """The table above; empty where no slice was found.

    Args:
        parts, rows: {"validation", "test": Part; positions of its images in `index`}.
        title: names a row of `findings.tests`.
    """
    found = findings.tests[findings.tests["verdict"] == SLICE].to_dict("records")
    if not found:
        return pd.DataFrame(columns=list(SHARED))
    made = []
    for part, split in (("validation", "val"), ("test", "test")):
        own = parts[part]
        frame = index.iloc[rows[part]][list(IDENTITY)].astype(str).reset_index(drop=True)
        right = (own.score >= findings.threshold) == (own.truth == 1)
        frame = frame.assign(part=split, truth=own.truth, score=own.score, right=right.astype(int))
        for row, inside in zip(found, members(findings, own).values(), strict=True):
            frame[title(row)] = (inside & (own.truth == row["class"])).astype(int)
        made.append(frame)
    return pd.concat(made, ignore_index=True)
