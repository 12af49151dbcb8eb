"""One HTML page of a run, self-contained: what was learnt from what, how well, and where the model looks."""

import base64
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd

from mammoclip_jax import pages, provenance
from mammoclip_jax.evaluation import result, statistics
from mammoclip_jax.evaluation.page import illustrations, plots
from mammoclip_jax.evaluation.page.display import Headline, headlines, interval, number, pivot
from mammoclip_jax.evaluation.result import Result

_LONG_TABLE = 24  # rows; longer tables stay in their CSV files
_COUNTS = ("images", "patients", "studies", "boxes", "texts", "quarantined")
_PICTURE_SIDE = 900  # pixels; larger pictures are shrunk for the page
PACKAGES = ("mammoclip_jax", *provenance.PACKAGES, "scikit-learn")
TABLES = "results"  # folder beside the page
_GALLERIES = ("gallery", "pictures")  # tables whose rows are pictures, of maps, of detections and of masks
_OTHER_LEVELS = re.compile(r".*_(max|image|exam|exam_max)")  # ends of metrics that stand below the others


def write(
    out: Path | str,
    results: Sequence[Result],
    *,
    model,
    datasets: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
    command: str = "",
    title: str = "",
    predictions: Sequence[tuple[Mapping[str, Any], Path]] = (),
    resamples: int = statistics.RESAMPLES,
) -> Path:
    """Writes `out/report.html`, and all tables and pictures to `out/results`.

    Args:
        results: named "dataset/evaluator", as `evaluate` returns them.
        model: its `config`, `step`, `provenance` and `preprocessing` are shown.
        datasets: {name: Dataset}; their `info` says what is real and what is phantom.
        history: rows of the run's metrics.jsonl.
        command: the command that made the results, to be repeated; of paths of this machine the page shows the last part.
        predictions: (what `exam.predict` returned, the folder it was given for overlays).
        resamples: of the patients, for the bands of curves and the intervals of subgroups.

    Returns:
        the path of the page.
    """
    out = Path(out)
    results = [_with_subgroups(outcome, datasets, resamples) for outcome in results]
    result.save(results, out / TABLES)
    infos = {name: dict(dataset.info) for name, dataset in datasets.items()}
    title = title or getattr(model.config, "name", "") or "Evaluation"
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            date=datetime.date.today().isoformat(),
            step=model.step,
            phantoms=[name for name, info in infos.items() if not info["real"]],
            reals=[name for name, info in infos.items() if info["real"]],
            datasets=[_dataset(name, info) for name, info in infos.items()],
            headlines=headlines(results),
            curves=plots.curves(list(history)),
            results=[_section(r, resamples) for r in results],
            galleries=[gallery for r in results if (gallery := _gallery(r))],
            exams=[exam for prediction, folder in predictions for exam in _exams(prediction, Path(folder))],
            measured=any(entry["value"] is not None for r in results for entry in r.metrics.values()),
            config=provenance.without_paths(config_text(model.config)),
            provenance=json.dumps(provenance.without_paths(result.plain(model.provenance)), indent=2),
            preprocessing=json.dumps(result.plain(dict(model.preprocessing)), indent=2),
            versions={name: provenance.version(name) for name in PACKAGES},
            tables=TABLES,
            command=provenance.without_paths(command),
        )
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def config_text(config) -> str:
    """A ConfigDict or a mapping as indented JSON."""
    if hasattr(config, "to_json_best_effort"):
        return json.dumps(json.loads(config.to_json_best_effort()), indent=2)
    return json.dumps(result.plain(config), indent=2)


def _environment() -> jinja2.Environment:
    environment = pages.environment(Path(__file__).parent)
    environment.filters |= {"svg": _svg, "value": _headline_value, "range": _headline_range, "number": number}
    return environment


def _svg(document: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(document).decode()


def inline(png: bytes, side: int = _PICTURE_SIDE) -> str:
    """A picture as a data URI in JPEG, shrunk to `side` pixels: a page of PNGs would be too large for a phone."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    scale = side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 86])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _headline_value(headline: Headline) -> str:
    return number(headline.entry["value"], headline.kind)


def _headline_range(headline: Headline) -> str:
    return interval(headline.entry, headline.kind)


def _dataset(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: info["counts"][key] for key in _COUNTS if key in info["counts"]}
    return {
        "name": name,
        "real": info["real"],
        "counts": counts,
        "licence": info.get("licence", ""),
        "citation": info.get("citation", ""),
        "fingerprint": info.get("fingerprint", ""),
    }


def _with_subgroups(outcome: Result, datasets: Mapping[str, Any], resamples: int) -> Result:
    """A result with the table "subgroups" of its predictions, where there are some to compare."""
    dataset = datasets.get(outcome.name.partition("/")[0])
    table = illustrations.by_subgroup(outcome, dataset.index, resamples) if dataset is not None else ()
    return outcome._replace(tables=outcome.tables | {"subgroups": table}) if len(table) else outcome


def _section(outcome: Result, resamples: int) -> dict[str, Any]:
    """A result as the page shows it: tables of metrics, plots, the short further tables, links to all."""
    dataset, _, evaluator = outcome.name.partition("/")
    tables, links = [], []
    for name, table in outcome.tables.items():
        if name not in _GALLERIES and len(table):
            links.append((f"{name}.csv", f"{TABLES}/{outcome.name}/{name}.csv"))
            if len(table) <= _LONG_TABLE:
                tables.append((name, _cells(table)))
    return {
        "dataset": dataset,
        "evaluator": evaluator.replace("_", " "),
        "protocol": outcome.protocol,
        "metrics": _metrics(outcome),
        "plots": _plots(outcome, resamples),
        "tables": tables,
        "links": links,
    }


def _metrics(outcome: Result) -> list[tuple[str, dict[str, Any]]]:
    """(heading, table) of the metrics; those of single images, exams and maxima stand below the others, folded.

    Labels whose metrics are of another kind, yes/no and classes, have tables of their own.
    """
    above = {name: entry for name, entry in outcome.metrics.items() if not _OTHER_LEVELS.fullmatch(name)}
    below = {name: entry for name, entry in outcome.metrics.items() if name not in above}
    parts = [("", above or below)] + [("Images, exams, maximum over views", below)] * bool(above and below)
    return [(heading, pivot(outcome._replace(metrics=metrics))) for heading, part in parts for metrics in _alike(part)]


def _alike(metrics: Mapping[str, dict]) -> list[dict[str, dict]]:
    """The metrics "row/column" in groups of rows, of which each has columns that are all another's too."""
    rows: dict[str, set[str]] = {}
    for name in metrics:
        row, _, column = name.rpartition("/")
        rows.setdefault(row, set()).add(column)
    groups: list[tuple[set[str], set[str]]] = []  # (columns, rows)
    for row, columns in rows.items():
        group = next((g for g in groups if columns <= g[0] or g[0] <= columns), None)
        if group is None:
            groups.append((set(columns), {row}))
        else:
            group[0].update(columns)
            group[1].add(row)
    return [
        {name: entry for name, entry in metrics.items() if name.rpartition("/")[0] in members} for _, members in groups
    ]


def _plots(outcome: Result, resamples: int) -> list[tuple[str, list[Any]]]:
    """(label, plots) of the predictions, then the figures that no gallery shows, under their name."""
    subgroups = outcome.tables.get("subgroups", pd.DataFrame({"label": []}))
    groups = []
    for label in illustrations.predicted(outcome):
        drawn = list(illustrations.of_label(label, illustrations.has_probabilities(outcome, label), resamples))
        forest = illustrations.forest(label.label, subgroups)
        groups.append((label.label.replace("_", " "), drawn + [forest] * (forest is not None)))
    shown = {
        row["figure"]
        for name in _GALLERIES
        if name in outcome.tables and len(outcome.tables[name])
        for row in outcome.tables[name].to_dict(orient="records")
    }
    figures = [
        (name.replace("_", " ").replace("froc", "FROC"), inline(png))
        for name, png in outcome.figures.items()
        if name not in shown
    ]
    return [group for group in (*groups, ("figures", figures)) if group[1]]


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    rows = [
        [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
        for row in table.itertuples(index=False)
    ]
    return {"columns": [str(column).replace("_", " ") for column in table.columns], "rows": rows}


def _gallery(outcome: Result) -> dict[str, Any] | None:
    """The pictures of a result, of maps or of detections, with their captions; None without any."""
    tables = [outcome.tables[name] for name in _GALLERIES if name in outcome.tables and len(outcome.tables[name])]
    if not tables:
        return None
    pictures = [
        {
            "uri": inline(outcome.figures[row["figure"]]),
            "label": str(row["label"]).replace("_", " "),
            "where": " ".join(filter(None, (row["laterality"], row["view"]))),
            "image": row["image"],
            "real": bool(row["real"]),
        }
        | _caption(row)
        for table in tables
        for row in table.to_dict(orient="records")
    ]
    dataset, _, evaluator = outcome.name.partition("/")
    return {
        "dataset": dataset,
        "evaluator": evaluator.replace("_", " "),
        "real": any(p["real"] for p in pictures),
        "pictures": pictures,
    }


def _caption(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"hit": whether a map's maximum is in a box, None where that is not asked; "note": the rest of the caption}."""
    if row.get("note"):
        return {"hit": None, "note": row["note"]}
    if "found" in row:
        true, found = int(row["boxes"]), int(row["found"])
        phrase = f"\u201c{row['phrase']}\u201d: " if row.get("phrase") else ""
        return {"hit": None, "note": f"{phrase}{true} true box{'es' * (true != 1)}, {found} found"}
    if row.get("sentence"):
        return {"hit": row["hit"] >= 0.5, "note": f"\u201c{row['sentence']}\u201d"}
    if row.get("hit") is None or pd.isna(row["hit"]):
        return {"hit": None, "note": "no box to compare with"}
    return {
        "hit": row["hit"] >= 0.5,
        "note": f"energy in box {number(row['energy'], 'percent')} (box: "
        f"{number(row['box_share'], 'percent')} of the breast)",
    }


def _exams(prediction: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Exams that `predict` scored, with their overlays."""
    exams = []
    for exam in prediction["exams"]:
        labels = list(prediction["prompts"]) or [label for view in exam["views"][:1] for label in view["scores"]]
        views = [
            {
                "title": " ".join(filter(None, (v["laterality"], v["view"]))) or "unknown view",
                "file": v["file"],
                "notes": v["notes"],
                "scores": [f"{label} {v['scores'][label]:+.3f}" for label in labels],
                "pictures": [
                    (label, inline((folder / v["overlays"][label]).read_bytes()))
                    for label in labels
                    if label in v.get("overlays", {})
                ],
                "attributes": [_attribute(found) for found in v.get("attributes", ())],
            }
            for v in exam["views"]
        ]
        breasts = [
            (breast["laterality"] or "side unknown", ", ".join(filter(None, breast["views"])), breast["scores"])
            for breast in exam["breasts"]
        ]
        exams.append(
            {
                "name": exam["exam"],
                "labels": labels,
                "views": views,
                "breasts": breasts,
                "missing": exam["missing"],
                "left_out": exam["left_out"],
                "meaning": prediction["aggregation"]["view"],
            }
        )
    return exams


def _attribute(found: Mapping[str, Any]) -> str:
    """As "mass +0.412: stage3 #12 +0.412, stage3 #7 +0.380; region (310, 520) to (402, 611)"."""
    channels = ", ".join(f"{c['stage']} #{c['channel']} {c['score']:+.3f}" for c in found["channels"])
    left, top, right, bottom = found["box"] or [0] * 4
    where = f"region ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f})" if found["box"] else "no region"
    return f"{found['label']} {found['score']:+.3f}: {channels}; {where}"
