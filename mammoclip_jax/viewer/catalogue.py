"""The exams of a data set as the page lists them: opaque names, filters, order. All in memory, nothing by patient."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.text.label_values import written
from mammoclip_jax.delivery.hanging import Standing, chest_wall, hang

MOST_VALUES = 12  # of a label that one may filter by
COLUMNS = ("split", "vendor")
UNKNOWN = "unknown"
ORDERS = ("as stored", "highest", "lowest", "wrong first")
APART = "most apart"  # of two models


class Filters(NamedTuple):
    """What an exam must fulfil: one of its images all of `columns`, `labels`, `inside` and `text`; its highest score the rest."""

    columns: Mapping[str, str] = {}  # of COLUMNS
    labels: Mapping[str, str] = {}
    inside: np.ndarray | None = None  # bool [n images]: of an error slice
    text: str = ""  # in a report, in any case
    low: float | None = None
    high: float | None = None


class Catalogue:
    """The exams of a data set folder.

    Attributes:
        dataset: `data.store.shards.Dataset`.
        exams: names of the exams, 16 hex digits each; images: of the images, in the order of the index.
        exam_of: int [n], the exam of each image.
        facets: {label or column: {value: number of exams}}, of those with few values.
    """

    def __init__(self, dataset):
        self.dataset, index = dataset, dataset.index
        self.exam_of = units.exams(index)
        self.members = [np.array(places) for places in units.members(self.exam_of)]
        key = str(dataset.info["fingerprint"])
        named = index[["dataset", "patient", "study", "image"]].astype(str).to_numpy()
        self.images = [_name(key, "image", row[0], row[3]) for row in named]
        self.exams = [_name(key, "exam", *named[places[0], :3]) for places in self.members]
        self._image = {name: place for place, name in enumerate(self.images)}
        self._exam = {name: place for place, name in enumerate(self.exams)}
        self._views = index[["laterality", "view"]].astype(str).to_numpy(dtype=object)
        self._patients = index.groupby(["dataset", "patient"], sort=False).ngroup().to_numpy()
        self._code, said = pd.factorize(index["labels"].to_numpy(dtype=object))
        self._labels = [json.loads(text) for text in said]  # of each distinct text
        self._texts: np.ndarray | None = None
        self._columns = {name: _or_unknown(index[name]) for name in COLUMNS if name in index}
        self.facets = self._facets()

    def exam(self, name: str) -> int:
        """The number of an exam. Raises KeyError: there is none of this name."""
        return self._exam[name]

    def image(self, name: str) -> int:
        """The place of an image in the index. Raises KeyError: there is none of this name."""
        return self._image[name]

    def of_label(self, label: str) -> np.ndarray:
        """Object [n]: what is known of each image, as text; "" unknown."""
        return np.array([written(one.get(label)) for one in self._labels], dtype=object)[self._code]

    def view_of(self, image: int) -> str:
        """Side and view of an image: "R CC", or "?"."""
        return " ".join(filter(None, self._views[image])) or "?"

    def _facets(self) -> dict[str, dict[str, int]]:
        found = {name: self._counted(values) for name, values in self._columns.items()}
        for label in dict.fromkeys(key for one in self._labels for key in one):
            if len({written(one.get(label)) for one in self._labels} - {""}) <= MOST_VALUES:
                found[label] = self._counted(self.of_label(label))
        return {name: counts for name, counts in found.items() if counts and (len(counts) > 1 or name not in COLUMNS)}

    def _counted(self, values: np.ndarray) -> dict[str, int]:
        table = pd.DataFrame({"exam": self.exam_of, "value": values}).drop_duplicates()
        counts = table["value"].value_counts()
        return {str(value): int(counts[value]) for value in sorted(counts.index, key=_natural) if value}

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Float [exams]: the highest of `values` [n] over an exam's images, NaN where none is known."""
        filled = np.where(np.isnan(values), -np.inf, values)
        best = np.full(len(self.exams), -np.inf)
        np.maximum.at(best, self.exam_of, filled)
        return np.where(np.isneginf(best), np.nan, best)

    def select(
        self,
        filters: Filters = Filters(),
        order: str = ORDERS[0],
        score: np.ndarray | None = None,
        wrong: np.ndarray | None = None,
    ) -> np.ndarray:
        """Int [m]: the exams that fit, in order; those without a score come last.

        Args:
            order: one of ORDERS, or APART.
            score, wrong: float [n] of the images; of APART `wrong` says how far apart two models are.
        """
        fits = np.ones(len(self.exam_of), bool)
        for name, value in filters.columns.items():
            fits &= self._columns[name] == value
        for name, value in filters.labels.items():
            fits &= self.of_label(name) == value
        if filters.inside is not None:
            fits &= filters.inside
        if filters.text.strip():
            fits &= self._with_text(filters.text.strip().lower())
        chosen = np.bincount(self.exam_of, fits, len(self.exams)) > 0
        best = self.highest(score) if score is not None else None
        if best is not None and filters.low is not None:
            chosen &= best >= filters.low
        if best is not None and filters.high is not None:
            chosen &= best <= filters.high
        places = np.flatnonzero(chosen)
        if order in ("wrong first", APART) and wrong is not None:
            return places[_falling(self.highest(wrong)[places])]
        if order in ("highest", "lowest") and best is not None:
            return places[_falling(best[places] if order == "highest" else -best[places])]
        return places

    def _with_text(self, wanted: str) -> np.ndarray:
        if self._texts is None:
            self._texts = np.array(["\n".join(texts).lower() for texts in self.dataset.index["texts"]], dtype=object)
        return np.fromiter((wanted in text for text in self._texts), bool, len(self._texts))

    def summary(self, exam: int) -> dict[str, Any]:
        """JSON, an exam's line in the list: its name, views, split, vendor and the labels that one may filter by."""
        places = self.members[exam]
        labels = self.labels(places)
        return {
            "id": self.exams[exam],
            "views": [self.view_of(place) for place in places],
            "labels": {name: labels[name] for name in labels if name in self.facets},
            **{name: str(values[places[0]]) for name, values in self._columns.items()},
        }

    def labels(self, places: Sequence[int]) -> dict[str, str]:
        """{label: its values in these images, the highest first}."""
        found: dict[str, set[str]] = {}
        for one in (self._labels[self._code[place]] for place in places):
            for name, value in one.items():
                if said := written(value):
                    found.setdefault(name, set()).add(said)
        return {name: ", ".join(sorted(values, key=_natural, reverse=True)) for name, values in found.items()}

    def views(self, exam: int) -> list[dict[str, Any]]:
        """JSON of an exam's images: name, side, view, size, known labels, boxes in pixels of the canvas, and flags."""
        made = []
        for place in self.members[exam]:
            row = self.dataset.index.iloc[place]
            made.append(
                {
                    "id": self.images[place],
                    "laterality": row["laterality"],
                    "view": row["view"],
                    "height": int(row["height"]),
                    "width": int(row["width"]),
                    "bits": int(row.get("bits", 8)),
                    "tall": _tall(row),
                    "labels": {name: written(value) for name, value in self._labels[self._code[place]].items()},
                    "boxes": [
                        {"label": written(item.get("label", "")), "box": [float(x) for x in item["box"]]}
                        for item in json.loads(row["boxes_canvas"])
                    ],
                    "flags": [flag for flag in str(row.get("flags", "")).split(",") if flag],
                }
            )
        return made

    def hung(self, exam: int) -> list[dict[str, Any]]:
        """JSON, from above: the row's view and, at the left and the right, {"place": among `views`, "mirrored"} or null."""
        prepared, standing = self.dataset.info["preprocessing"], []
        for view in self.views(exam):
            wall = chest_wall(prepared, view["laterality"], view["flags"])
            standing.append(Standing(view["laterality"], view["view"], wall))
        return [
            {"view": row.view, "left": row.left and row.left._asdict(), "right": row.right and row.right._asdict()}
            for row in hang(standing)
        ]

    def mirrored(self, image: int) -> bool:
        """Whether an image hangs mirrored."""
        row = self.dataset.index.iloc[image]
        flags = str(row.get("flags", "")).split(",")
        wall = chest_wall(self.dataset.info["preprocessing"], row["laterality"], flags)
        (place,) = hang([Standing(row["laterality"], row["view"], wall)])
        return (place.left or place.right).mirrored

    def reports(self, exam: int) -> list[dict[str, Any]]:
        """JSON: each text of an exam once, as it is stored: "section", "text", "of" (the sides or views it belongs to)."""
        rows = self.dataset.index.iloc[self.members[exam]]
        found: dict[tuple[str, str], dict[str, None]] = {}
        for side, texts, sections in zip(rows["laterality"], rows["texts"], rows["sections"]):
            for section, text in zip(sections, texts):
                found.setdefault((section, text), {})[side] = None
        return [{"section": key[0], "text": key[1], "of": sorted(filter(None, of))} for key, of in found.items()]

    def others(self, exam: int) -> list[dict[str, str]]:
        """JSON: the other exams of the same patient, with the days since the first where they are known."""
        own = self._patients[self.members[exam][0]]
        numbers = dict.fromkeys(self.exam_of[self._patients == own].tolist())
        days = {number: self.labels(self.members[number]).get("study_day", "") for number in numbers}
        return [{"id": self.exams[number], "day": days[number]} for number in numbers if number != exam]


def _name(key: str, *parts: str) -> str:
    """16 hex digits: the same in every run, and no way back to who or what it is."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8, key=key.encode()[:64]).hexdigest()


def _or_unknown(column: pd.Series) -> np.ndarray:
    return column.astype(str).replace("", UNKNOWN).to_numpy(dtype=object)


def _natural(text: str) -> list:
    return [(0, float(part), "") if part.isdigit() else (1, 0.0, part) for part in re.split(r"(\d+)", str(text))]


def _falling(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")


def _tall(row: pd.Series) -> float:
    """Height of a canvas pixel over its width, in the original: 1 unless the image was stretched."""
    if not row.get("transform"):
        return 1.0
    down, across = Transform.from_json(row["transform"]).scale
    return across / down
