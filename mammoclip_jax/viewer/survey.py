"""Vectors and scores of all images of a data set, and vectors of its reports: computed once, in the background, and kept in
memory; what is nearest to a picture or a phrase among those that are there."""

import logging
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.store.shards import read
from mammoclip_jax.evaluation import cache
from mammoclip_jax.provenance import without_paths
from mammoclip_jax.viewer.reader import Reader

CHUNK = 16  # images or texts between two looks at whether somebody waits
NEAREST = 12


class Near(NamedTuple):
    """Places by falling cosine."""

    place: np.ndarray  # int [k]
    cosine: np.ndarray  # float32 [k]


class Survey:
    """All images and reports of a data set as a model sees them.

    Attributes:
        vectors: unit float32 [n, D], rows that are `there`; None before the first.
        scores: {label: float [n]}, NaN where not computed.
        texts: the distinct texts of the reports; rows: {text's place: rows of the index that have it}.
    """

    def __init__(self, reader: Reader, dataset, folder: str | Path = ""):
        """`folder` keeps the vectors of images for the next time (evaluation/cache.py); "": none."""
        self.reader, self.dataset, self._folder = reader, dataset, folder
        count = len(dataset)
        self.vectors: np.ndarray | None = None
        self.there = np.zeros(count, bool)
        self.scores: dict[str, np.ndarray] = {}
        self.texts, self.rows = _texts(dataset.index["texts"]) if not reader.no_phrase else ([], [])
        self.text_vectors: np.ndarray | None = None
        self.texts_there = 0
        self.error = ""
        self._thread: threading.Thread | None = None
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Begins, unless it has begun."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="survey")
                self._thread.start()

    def stop(self) -> None:
        """Ends it after the images at hand."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Until all is there."""
        if self._thread is not None:
            self._thread.join()

    def progress(self) -> dict[str, Any]:
        """JSON: whether it has begun, how many images and reports are done and there are, what went wrong."""
        return {
            "begun": self._thread is not None,
            "images": int(self.there.sum()),
            "of_images": len(self.there),
            "reports": self.texts_there,
            "of_reports": len(self.texts),
            "error": self.error,
        }

    def nearest(
        self, vector: np.ndarray, leave_out: np.ndarray, count: int = NEAREST, groups: np.ndarray | None = None
    ) -> Near:
        """The images nearest to a unit vector [D]; `leave_out`: bool [n]; of each of `groups` int [n] the nearest alone."""
        if self.vectors is None:
            return Near(np.zeros(0, int), np.zeros(0, np.float32))
        cosines = np.where(self.there & ~leave_out, self.vectors @ vector, -np.inf)
        return _first(cosines, count, groups)

    def nearest_texts(self, vector: np.ndarray, count: int = NEAREST) -> Near:
        """The reports nearest to a unit vector, places in `texts`."""
        if self.text_vectors is None:
            return Near(np.zeros(0, int), np.zeros(0, np.float32))
        cosines = self.text_vectors[: self.texts_there] @ vector
        return _first(cosines, count, None)

    def share_below(self, cosine: float, vector: np.ndarray) -> float | None:
        """Which share of the images that are there is less like `vector` than `cosine`; None before the first."""
        if self.vectors is None or not self.there.any():
            return None
        return float((self.vectors[self.there] @ vector < cosine).mean())

    def _run(self) -> None:
        try:
            self._images()
            self._reports()
        except Exception as error:  # the page says it; the other parts of it go on
            logging.exception("the survey of the data set ended early")
            self.error = without_paths(f"{type(error).__name__}: {error}")

    def _images(self) -> None:
        reader, kind = self.reader, "embedding" if self.reader.model.kind == "dual_encoder" else "pooled"
        path = cache.path_of(self._folder, reader.model, self.dataset, kind) if self._folder else None
        known = cache.load(path) if path else {}
        vectors_say_all = reader.model.kind == "dual_encoder"
        for start in range(0, len(self.there), CHUNK):
            places = np.arange(start, min(start + CHUNK, len(self.there)))
            if self._stopped.is_set():
                return
            kept = [known.get(int(place)) for place in places]
            have = all(one is not None for one in kept)
            images = None if have and vectors_say_all else read(self.dataset, places)
            with reader.behind(self._stopped.wait):
                vectors = np.stack(kept) if have else reader.vectors(images)
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
                scores = reader.scores(images, vectors if vectors_say_all else None)
            if self.vectors is None:
                self.vectors = np.zeros((len(self.there), vectors.shape[1]), np.float32)
            self.vectors[places] = vectors
            for label, values in scores.items():
                self.scores.setdefault(label, np.full(len(self.there), np.nan))[places] = values
            self.there[places] = True
        if path and len(known) < len(self.there):
            cache.save(path, dict(enumerate(self.vectors)))

    def _reports(self) -> None:
        for start in range(0, len(self.texts), CHUNK):
            if self._stopped.is_set():
                return
            part = self.texts[start : start + CHUNK]
            with self.reader.behind(self._stopped.wait):
                vectors = np.asarray(self.reader.model.embed_text(part), np.float32)
            if self.text_vectors is None:
                self.text_vectors = np.zeros((len(self.texts), vectors.shape[1]), np.float32)
            self.text_vectors[start : start + len(part)] = vectors
            self.texts_there = start + len(part)


def _texts(column) -> tuple[list[str], list[list[int]]]:
    rows: dict[str, list[int]] = {}
    for place, texts in enumerate(column):
        for text in texts:
            rows.setdefault(text, []).append(place)
    return list(rows), list(rows.values())


def _first(cosines: np.ndarray, count: int, groups: np.ndarray | None) -> Near:
    """The highest of `cosines`; without those that are -inf."""
    few = min(len(cosines), count if groups is None else 16 * count)
    chosen = np.argpartition(-cosines, few - 1)[:few] if few else np.zeros(0, int)
    chosen = chosen[np.lexsort((chosen, -cosines[chosen]))]
    chosen = chosen[~np.isneginf(cosines[chosen])]
    if groups is not None:
        chosen = chosen[np.sort(np.unique(groups[chosen], return_index=True)[1])]
    return Near(chosen[:count], cosines[chosen[:count]])
