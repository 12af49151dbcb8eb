"""The scores of many exams as tables: one row an exam, a breast, a view."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammoclip_jax.files import whole

_EXAM = ("exam", "study", "views", "missing", "left_out", "problems")
_BREAST = ("exam", "laterality", "views")
_VIEW = ("exam", "name", "laterality", "view", "study_uid", "series_uid", "image_uid", "height", "width")


def write(out: Path, exams: Sequence[Mapping[str, Any]], prediction: Mapping[str, Any]) -> None:
    """Writes `exams.csv`, `breasts.csv` and `views.csv` from what `delivery.folder.deliver` made of the exams.

    Each row has the exam's id and "model", the weights' fingerprint. Of each label exams and breasts have LABEL_mean and
    LABEL_max, views LABEL, and LABEL_x, LABEL_y: the highest place of its map in the original. Lists are joined by blanks.
    """
    model = prediction["model"]["fingerprint"]
    tables = {"exams": (_EXAM, _exams(exams)), "breasts": (_BREAST, _breasts(exams)), "views": (_VIEW, _views(exams))}
    for name, (columns, rows) in tables.items():
        scores = pd.DataFrame(list(rows))
        table = scores.reindex(columns=list(dict.fromkeys([*columns, *scores.columns]))).assign(model=model)
        with whole(Path(out, f"{name}.csv")) as partial:
            table.to_csv(partial, index=False)


def _exams(exams):
    for exam in exams:
        yield {
            "exam": exam["exam"],
            "study": exam["study"],
            "views": " ".join(view["name"] for view in exam["views"]),
            "missing": " ".join(name.replace(" ", "-") for name in exam["missing"]),
            "left_out": len(exam["left_out"]),
            "problems": exam["problems"],
        } | _aggregated(exam["scores"])


def _breasts(exams):
    for exam in exams:
        for breast in exam["breasts"]:
            yield {
                "exam": exam["exam"],
                "laterality": breast["laterality"],
                "views": " ".join(breast["files"]),
            } | _aggregated(breast["scores"])


def _views(exams):
    for exam in exams:
        for view in exam["views"]:
            yield {
                "exam": exam["exam"],
                "name": view["name"],
                "laterality": view["laterality"],
                "view": view["view"],
                **{f"{part}_uid": value for part, value in view["uids"].items()},
                "height": view["original"][0],
                "width": view["original"][1],
                **view["scores"],
                **_places(view.get("peaks", {})),
            }


def _aggregated(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{label}_{kind}": score[kind] for label, score in scores.items() for kind in ("mean", "max")}


def _places(peaks: Mapping[str, Sequence[float] | None]) -> dict[str, float | None]:
    found = {label: peak or (None, None) for label, peak in peaks.items()}
    return {f"{label}_{axis}": peak[i] for label, peak in found.items() for i, axis in enumerate("xy")}
