"""What the evaluators share: which rows to score, their embeddings (computed once), and the grouping into breasts."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data import leave_out
from mammoclip_jax.data.batches.units import GROUPS, breasts
from mammoclip_jax.data.store.shards import read
from mammoclip_jax.data.text.label_values import birads_number, density_number, names_of, text_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import cache
from mammoclip_jax.names import check_name
from mammoclip_jax.progress import Bar

CHUNK = 64  # images in memory at a time; no result depends on it
_SAVE_EVERY = 300  # seconds, of vectors that are kept on disk while more are computed


def select(index: pd.DataFrame, split: str = "test", patients: int | None = None, seed: int = 0) -> np.ndarray:
    """Positions of the rows of `index` in `split` ("all": of every split that is used).

    Of at most `patients` patients, drawn by `seed`.

    Raises:
        UserError: the index has no such split.
    """
    chosen = (index["split"] != leave_out.SPLIT if split == "all" else index["split"] == split).to_numpy(copy=True)
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


def boxes_of(row: pd.Series, label: str) -> np.ndarray:
    """float [k, 4]: the boxes (x0, y0, x1, y1) in canvas pixels that are labelled `label`, alone or among others."""
    boxes = [item["box"] for item in json.loads(row["boxes_canvas"]) if label in names_of(item)]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def known_where(rows: pd.DataFrame, label: str) -> np.ndarray:
    """bool [n]: images that have a box of the label, or are known to lack it."""
    with_box = np.array([len(boxes_of(row, label)) > 0 for _, row in rows.iterrows()], bool)
    return with_box | (label_values(rows, label) == 0)


def label_texts(rows: pd.DataFrame, label: str) -> np.ndarray:
    """str [n]: the value of a label for each row as the name of a class, "" where it is unknown.

    Density is "A" to "D" and BI-RADS "0" to "6" whatever their type ("4A" is "4"); yes/no labels are "1" and "0". Where
    a density is F or G the scale is mini-MIAS's, whose D is another one: it stays "F", "G", "D".
    """
    values = [json.loads(labels).get(label) for labels in rows["labels"]]
    own_scale = label == "density" and not {"F", "G"}.isdisjoint(map(text_of, values))
    return np.array([text_of(v) if own_scale else _class_name(label, v) for v in values], dtype=object)


def _class_name(label: str, value: Any) -> str:
    if label == "density":
        number = density_number(value)
        return "ABCD"[number - 1] if number else ""
    if label == "birads":
        number = birads_number(value)
        return "" if number is None else str(number)
    if isinstance(value, (list, tuple)):
        return ", ".join(sorted(map(text_of, value)))
    whole = isinstance(value, (bool, float)) and float(value).is_integer()
    return str(int(value)) if whole else text_of(value)


def first_rows(groups: np.ndarray) -> np.ndarray:
    """Position of the first member of each group 0..G-1."""
    return np.unique(groups, return_index=True)[1]


def aggregate(values: np.ndarray, groups: np.ndarray, how: str) -> np.ndarray:
    """`values` [n] or [n, D] → one a group, by "mean" or "max"."""
    frame = pd.DataFrame(values).groupby(groups)
    out = (frame.max() if how == "max" else frame.mean()).to_numpy()
    return out[:, 0] if np.ndim(values) == 1 else out


class Level(NamedTuple):
    """What a metric is of; `suffix` is the end of its name."""

    suffix: str
    unit: str  # a key of data.batches.units.UNITS
    how: str  # "mean" or "max" over its images


LEVELS = (
    Level("", "breast", "mean"),
    Level("_max", "breast", "max"),
    Level("_image", "image", "mean"),
    Level("_exam", "exam", "mean"),
    Level("_exam_max", "exam", "max"),
)


def pooled(values: np.ndarray, rows: pd.DataFrame, unit: str, how: str) -> np.ndarray:
    """`values` [n] or [n, D] of images → one for each of the rows' units, by "mean" or "max".

    The mean of an exam is that of its breasts' means, so that a breast with more views weighs no more.
    """
    group = GROUPS[unit](rows)
    if unit == "exam" and how == "mean":
        breast = breasts(rows)
        values, group = aggregate(values, breast, "mean"), group[first_rows(breast)]
    return aggregate(values, group, how)


class TextBank:
    """Text embeddings under one model as it is now, each text computed once however many data sets and evaluators ask.

    It lives in memory, for as long as the model's weights stay the same.
    """

    def __init__(self, model):
        self.model = model
        self._known: dict[str, np.ndarray] = {}

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm float32 [n, D], as `DualEncoder.embed_text`."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            embedded = np.asarray(self.model.embed_text(missing), dtype=np.float32)
            self._known.update(zip(missing, embedded, strict=True))
        return np.stack([self._known[text] for text in texts])


# Kinds of image vectors, and how a model computes them.
KINDS: dict[str, Callable] = {
    "embedding": lambda model, images: model.embed_image(images),
    "pooled": lambda model, images: model.image_features(images),
    "stages": lambda model, images: model.image_features(images, of="stages"),
}


class Features:
    """Image vectors of one data set under one model, each computed once however many evaluators ask.

    Attributes:
        texts: the texts' embeddings; shared between data sets where a `TextBank` is given.
    """

    def __init__(self, model, dataset, texts: TextBank | None = None, folder: str | Path = ""):
        """`folder` keeps the vectors for later runs (see cache.py); "": they live in memory only."""
        self.model, self.dataset, self.folder = model, dataset, folder
        self.texts = texts or TextBank(model)
        self._known: dict[str, dict[int, np.ndarray]] = {}

    def images(self, positions: Sequence[int]) -> np.ndarray:
        """Unit-norm float32 [n, D] of the rows at `positions` of the data set's index."""
        return self.of("embedding", positions)

    def of(self, kind: str, positions: Sequence[int]) -> np.ndarray:
        """Float32 [n, c] of the rows at `positions`, not to be written to; `kind` is a key of KINDS.

        Raises:
            UserError: there is no such kind, or the model has no such vectors.
        """
        check_name(kind, KINDS, "kind of image features")
        if kind == "embedding" and not hasattr(self.model, "embed_image"):
            raise UserError(f"a {self.model.kind} has no embedding: choose the features pooled or stages.")
        path = cache.path_of(self.folder, self.model, self.dataset, kind) if self.folder else None
        if kind not in self._known:
            self._known[kind] = cache.load(path) if path else {}
        known = self._known[kind]
        wanted = [int(p) for p in positions]
        missing = [i for i in dict.fromkeys(wanted) if i not in known]
        computed, saved = np.empty((0, 0), np.float32), time.monotonic()
        for number, chunk in enumerate(chunks(missing)):
            vectors = KINDS[kind](self.model, read(self.dataset, chunk))
            if not number:  # one array of all: of many small ones, memory stays taken when they are left
                computed = np.empty((len(missing), np.shape(vectors)[1]), np.float32)
            rows = computed[number * CHUNK :][: len(chunk)]
            rows[:] = vectors
            known.update(zip(chunk, rows, strict=True))
            if path and (chunk[-1] == missing[-1] or time.monotonic() - saved > _SAVE_EVERY):
                cache.save(path, known)
                saved = time.monotonic()
        vectors = computed if wanted == missing else np.stack([known[i] for i in wanted])
        vectors.flags.writeable = False
        if len(set(wanted)) == len(wanted) == len(known):
            known.update(zip(wanted, vectors))  # instead of a second copy of all
        return vectors


def chunks(positions: Sequence[int]) -> Iterator[list[int]]:
    """`positions` in runs of at most CHUNK; says how far it is."""
    with Bar(len(positions), "image") as bar:
        for start in range(0, len(positions), CHUNK):
            chunk = [int(p) for p in positions[start : start + CHUNK]]
            yield chunk
            bar.update(len(chunk))
