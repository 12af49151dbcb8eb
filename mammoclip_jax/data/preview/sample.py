"""A sample of images that shows as many kinds of them as it can."""

import collections
from collections.abc import Sequence

import numpy as np
import pandas as pd


def spread(rows: pd.DataFrame, columns: Sequence[str], count: int, seed: int) -> list[int]:
    """Positions of up to `count` rows that spread over the values of `columns`, in the order of choice.

    Rows alike in all columns are a group. Again and again the group comes next whose values are the rarest in the
    sample so far; within a group the order is random. A comma parts the values of a column ("flags").
    """
    generator = np.random.default_rng(seed)
    groups: dict[tuple, list[int]] = {}
    values = list(zip(*(rows[column].astype(str) for column in columns)))
    for position in generator.permutation(len(rows)):
        groups.setdefault(values[position], []).append(int(position))
    attributes = {
        key: [(column, value) for column, text in zip(columns, key) for value in text.split(",")] for key in groups
    }
    seen: collections.Counter = collections.Counter()
    chosen: list[int] = []
    while groups and len(chosen) < count:
        best = max(groups, key=lambda key: sum(1 / (1 + seen[item]) ** 2 for item in attributes[key]))
        chosen.append(groups[best].pop())
        seen.update(attributes[best])
        if not groups[best]:
            del groups[best]
    return chosen
