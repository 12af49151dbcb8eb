"""One HTML page of a run, self-contained: what was learnt from what, how well, and where the model looks."""

import base64
import datetime
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import cv2
import jinja2
import numpy as np
import pandas as pd

from mammoclip_jax import provenance
from mammoclip_jax.evaluation import plots, result
from mammoclip_jax.evaluation.display import (
    Headline,
    headlines,
    interval,
    number,
    pivot,
)
from mammoclip_jax.evaluation.result import Result

_LONG_TABLE = 24         # rows; longer tables stay in their CSV files
_COUNTS = ("images", "patients", "studies", "boxes", "texts", "quarantined")
_PICTURE_SIDE = 900      # pixels; larger pictures are shrunk for the page
PACKAGES = ("mammoclip_jax", *provenance.PACKAGES, "scikit-learn")
TABLES = "results"       # folder beside the page


def write(out: Path | str, results: Sequence[Result], *, model, datasets: Mapping[str, Any],
          history: Sequence[Mapping[str, Any]] = (), command: str = "", title: str = "",
          predictions: Sequence[tuple[Mapping[str, Any], Path]] = ()) -> Path:
    """Writes `out/report.html`, and all tables and pictures to `out/results`.

    Args:
        results: named "dataset/evaluator", as `evaluate` returns them.
        model: its `config`, `step`, `provenance` and `preprocessing` are shown.
        datasets: {name: Dataset}; their `info` says what is real and what is phantom.
        history: rows of the run's metrics.jsonl.
        command: the command that made the results, to be repeated.
        predictions: (what `exam.predict` returned, the folder it was given for overlays).

    Returns:
        the path of the page.
    """
    out = Path(out)
    results = list(results)
    result.save(results, out / TABLES)
    infos = {name: dict(dataset.info) for name, dataset in datasets.items()}
    title = title or getattr(model.config, "name", "") or "Evaluation"
    page = _environment().get_template("report.html.jinja").render(
        title=title,
        date=datetime.date.today().isoformat(),
        step=model.step,
        phantoms=[name for name, info in infos.items() if not info["real"]],
        reals=[name for name, info in infos.items() if info["real"]],
        datasets=[_dataset(name, info) for name, info in infos.items()],
        headlines=headlines(results),
        curves=plots.curves(list(history)),
        results=[_section(r) for r in results],
        galleries=[gallery for r in results if (gallery := _gallery(r))],
        exams=[exam for found, folder in predictions for exam in _exams(found, Path(folder))],
        config=config_text(model.config),
        provenance=json.dumps(result.plain(model.provenance), indent=2),
        preprocessing=json.dumps(result.plain(dict(model.preprocessing)), indent=2),
        versions={name: provenance.version(name) for name in PACKAGES},
        tables=TABLES,
        command=command,
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
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
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
    return {"name": name, "real": info["real"], "counts": counts, "licence": info.get("licence", ""),
            "citation": info.get("citation", ""), "fingerprint": info.get("fingerprint", "")}


def _section(found: Result) -> dict[str, Any]:
    """A result as the page shows it: the table of metrics, the short further tables, the names of the long ones."""
    dataset, _, evaluator = found.name.partition("/")
    tables, long = [], []
    for name, table in found.tables.items():
        if name != "gallery" and len(table):
            (tables if len(table) <= _LONG_TABLE else long).append((name, table))
    return {"dataset": dataset, "evaluator": evaluator.replace("_", " "), "protocol": found.protocol,
            "metrics": pivot(found), "tables": [(name, _cells(table)) for name, table in tables],
            "files": [f"{TABLES}/{found.name}/{name}.csv" for name, _ in long]}


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    rows = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
            for row in table.itertuples(index=False)]
    return {"columns": [str(column).replace("_", " ") for column in table.columns], "rows": rows}


def _gallery(found: Result) -> dict[str, Any] | None:
    """The pictures of a result with their captions; None without any."""
    table = found.tables.get("gallery")
    if table is None or not len(table):
        return None
    pictures = []
    for row in table.to_dict(orient="records"):
        scored = row.get("hit") is not None and not pd.isna(row.get("hit"))
        pictures.append({
            "uri": inline(found.figures[row["figure"]]),
            "label": row["label"], "where": " ".join(filter(None, (row["laterality"], row["view"]))),
            "image": row["image"], "real": bool(row["real"]),
            "hit": None if not scored else row["hit"] >= 0.5,
            "energy": number(row["energy"], "percent") if scored else "",
            "share": number(row["box_share"], "percent") if scored else "",
        })
    dataset, _, evaluator = found.name.partition("/")
    return {"dataset": dataset, "evaluator": evaluator, "real": any(p["real"] for p in pictures), "pictures": pictures}


def _exams(found: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Exams that `predict` scored, with their overlays."""
    labels = list(found["prompts"])
    exams = []
    for exam in found["exams"]:
        views = [{"title": " ".join(filter(None, (v["laterality"], v["view"]))) or "unknown view", "file": v["file"],
                  "notes": v["notes"],
                  "scores": [f"{label} {v['scores'][label]:+.3f}" for label in labels],
                  "pictures": [(label, inline((folder / v["overlays"][label]).read_bytes()))
                               for label in labels if label in v.get("overlays", {})]} for v in exam["views"]]
        breasts = [(breast["laterality"] or "side unknown", ", ".join(filter(None, breast["views"])), breast["scores"])
                   for breast in exam["breasts"]]
        exams.append({"name": exam["exam"], "labels": labels, "views": views, "breasts": breasts})
    return exams
