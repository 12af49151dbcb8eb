"""What the evaluators share: which rows to score, their embeddings (computed once), and the grouping into breasts."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, Sequence

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError

CHUNK = 64          # images in memory at a time; no result depends on it
_READERS = 4        # threads


def select(index: pd.DataFrame, split: str = "test", patients: int | None = None, seed: int = 0) -> np.ndarray:
    """Positions of the rows of `index` in `split` ("all": every row); at most `patients` patients, drawn by `seed`.

    Raises:
        UserError: the index has no such split.
    """
    chosen = np.ones(len(index), dtype=bool) if split == "all" else (index["split"] == split).to_numpy(copy=True)
    if split != "all" and not chosen.any():
        known = sorted(set(index["split"]))
        raise UserError(f"no image is in split {split!r}; the splits are {known}, and 'all' takes every image.")
    names = np.unique(index["patient"][chosen].astype(str))
    if patients is not None and len(names) > patients:
        names = np.random.default_rng(seed).permutation(names)[:patients]
        chosen &= index["patient"].astype(str).isin(names).to_numpy()
    return np.flatnonzero(chosen)


def label_values(rows: pd.DataFrame, label: str) -> np.ndarray:
    """Float [n]: 1.0, 0.0 or NaN (unknown) of a yes/no `label` for each row.

    Raises:
        UserError: the label holds something else, such as a density letter.
    """
    values = [json.loads(labels).get(label) for labels in rows["labels"]]
    wrong = [v for v in values if v is not None and v not in (0, 1)]
    if wrong:
        raise UserError(f"label {label!r} is not a yes/no label: it holds {wrong[0]!r}, where 0 or 1 is needed.")
    return np.array([np.nan if v is None else float(v) for v in values])


def breasts(rows: pd.DataFrame) -> np.ndarray:
    """Int [n]: number of the breast (data set, patient, study, laterality) of each row, in order of first appearance.

    An image of unknown laterality is a breast of its own: guessing could join the two sides.
    """
    side = np.where(rows["laterality"].isin(["L", "R"]), rows["laterality"], "?" + rows["image"].astype(str))
    keys = rows[["dataset", "patient", "study"]].astype(str).assign(side=side)
    return keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()


def first_rows(groups: np.ndarray) -> np.ndarray:
    """Position of the first member of each group 0..G-1."""
    return np.unique(groups, return_index=True)[1]


def aggregate(values: np.ndarray, groups: np.ndarray, how: str) -> np.ndarray:
    """`values` [n] or [n, D] → one a group, by "mean" or "max"."""
    frame = pd.DataFrame(values).groupby(groups)
    out = (frame.max() if how == "max" else frame.mean()).to_numpy()
    return out[:, 0] if np.ndim(values) == 1 else out


def unit(vectors: np.ndarray) -> np.ndarray:
    """`vectors` [..., D] scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class Features:
    """Image embeddings of one data set under one model, each computed once however many evaluators ask."""

    def __init__(self, model, dataset):
        self.model, self.dataset = model, dataset
        self._known: dict[int, np.ndarray] = {}

    def images(self, positions: Sequence[int]) -> np.ndarray:
        """Unit-norm float32 [n, D] of the rows at `positions` of the data set's index."""
        missing = [i for i in dict.fromkeys(int(p) for p in positions) if i not in self._known]
        for chunk in chunks(missing):
            embedded = np.asarray(self.model.embed_image(read(self.dataset, chunk)), dtype=np.float32)
            self._known.update(zip(chunk, embedded, strict=True))
        return np.stack([self._known[int(p)] for p in positions])


def chunks(positions: Sequence[int]) -> Iterator[list[int]]:
    """`positions` in runs of at most CHUNK."""
    for start in range(0, len(positions), CHUNK):
        yield [int(p) for p in positions[start:start + CHUNK]]


def read(dataset, positions: Sequence[int]) -> np.ndarray:
    """Canvases [n, H, W] uint8 or uint16 of the rows at `positions`."""
    with ThreadPoolExecutor(_READERS) as pool:
        return np.stack(list(pool.map(dataset.read, map(int, positions))))
