"""One HTML page of error slices, self-contained: what they are, in words and images, what they cost, and the repair."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from mammoclip_jax import pages
from mammoclip_jax.data.preview import page as preview
from mammoclip_jax.evaluation.page.display import interval, number
from mammoclip_jax.evaluation.page.report import PACKAGES
from mammoclip_jax.evaluation.page.tables import shown
from mammoclip_jax.evaluation.slices.analyse import Analysis
from mammoclip_jax.evaluation.slices.confirmation import ABSENT, SLICE
from mammoclip_jax.evaluation.slices.gather import Gathered
from mammoclip_jax.evaluation.slices.mend import CLASSIFIER, DFR, DRO, MEAN_HEAD, REPAIRED, true_name
from mammoclip_jax.evaluation.slices.phrases import n_grams, words
from mammoclip_jax.files import write_text
from mammoclip_jax.provenance import versions

_SIDE = 300  # pixels of an image on the page, at most
_SENTENCES = 4  # of a slice
_LISTED = 12  # of each end of the retrieved list
_MODELS = {CLASSIFIER: "as it was", REPAIRED: "repaired"}  # whose figures stand in a slice's card


def write(
    out: Path | str,
    analysis: Analysis,
    *,
    dataset,
    gathered: Gathered,
    label: str,
    known: str = "",
    protocol: str = "",
    command: str = "",
    models: Mapping[str, str] = {},
    repaired: str = "",
) -> Path:
    """Writes the page and returns its path. No image, study or patient is named on it.

    Args:
        dataset: of the classifier; its images are the examples.
        label: what the classifier decides; known: the label that is a known slice, or "".
        protocol: how it was measured; command: what made it, without paths of this machine.
        models: {what: name} of the models.
        repaired: name of the repaired classifier's folder beside the page; "": there is none.
    """
    found = analysis.findings
    what = label.replace("_", " ")
    template = pages.environment(Path(__file__).parent, Path(preview.__file__).parent).get_template("slices.html.jinja")
    page = template.render(
        label=what,
        known=known.replace("_", " "),
        date=datetime.date.today().isoformat(),
        dataset=dataset.info["name"],
        real=dataset.info["real"],
        licence=dataset.info.get("licence", ""),
        models=models,
        counts=gathered.counts,
        threshold=f"{found.threshold:.4g}",
        slices=_slices(analysis, dataset, gathered, what),
        tests=_tests(found.tests, what),
        sentences=_sentences(found.retrieved, what),
        headlines=_headlines(analysis, known),
        figures=_models(analysis),
        groups=_groups(analysis, what),
        exported=MEAN_HEAD,
        repaired=repaired,
        fairness=_fairness(analysis.fairness),
        precision=analysis.metrics.get("precision_at_10"),
        notes=analysis.notes,
        protocol=protocol,
        versions=versions(PACKAGES),
        command=command,
    )
    write_text(Path(out), page)
    return Path(out)


def of_slice(row: Mapping[str, Any], label: str) -> str:
    """A row of the tests in words: "mass, without skin marker"."""
    of = label if row["class"] else f"no {label}"
    if "=" in row["hypothesis"]:
        return f"{of}, {row['hypothesis'].replace('=', ' not ' if row['worse'] == ABSENT else ' ')}"
    return f"{of}, {'without' if row['worse'] == ABSENT else 'with'} {row['hypothesis']}"


def _slices(analysis: Analysis, dataset, gathered: Gathered, label: str) -> list[dict[str, Any]]:
    found = analysis.findings
    cards = []
    for row in found.tests[found.tests["verdict"] == SLICE].to_dict("records"):
        key = f"{row['hypothesis']} {row['worse']}, class {row['class']}"
        rates = analysis.rates[analysis.rates["slice"] == key]
        figure = "sensitivity" if row["class"] else "specificity"
        whole = analysis.rates[analysis.rates["slice"] == "all"]
        chosen = analysis.examples
        chosen = chosen[(chosen["hypothesis"] == row["hypothesis"]) & (chosen["class"] == row["class"])]
        cards.append(
            {
                "title": of_slice(row, label),
                "source": row["source"],
                "figure": figure,
                "gap": _percent(row, "gap"),
                "inside": number(row["accuracy_slice"], "percent"),
                "outside": number(row["accuracy_rest"], "percent"),
                "n": (row["n_slice"], row["n_rest"], row["patients_slice"], row["patients_rest"]),
                "q": shown(pd.DataFrame({"q_": [row["q"]]}))["q_"][0],
                "rates": [_rate(rates, whole, model, said) for model, said in _MODELS.items()],
                "sentences": _naming(found.retrieved, row),
                "examples": _examples(chosen, dataset, gathered),
            }
        )
    return cards


def _rate(rates: pd.DataFrame, whole: pd.DataFrame, model: str, said: str) -> dict[str, Any]:
    """Sensitivity and specificity of one slice and of all images under one model."""
    cells = {}
    for name, table in (("here", rates), ("all", whole)):
        for row in table[table["model"] == model].to_dict("records"):
            entry = _plain(row)
            cells[f"{row['figure']}, {name}"] = (
                number(entry["value"], "percent"),
                interval(entry, "percent"),
                row["n"],
            )
    return {"model": said, "cells": cells} if cells else {}


def _plain(row: Mapping[str, Any], low: str = "low", high: str = "high", value: str = "value") -> dict[str, Any]:
    """The entry of a table's row; NaN is None."""
    return {
        name: None if pd.isna(row[key]) else row[key] for name, key in zip(("value", "low", "high"), (value, low, high))
    }


def _percent(row: Mapping[str, Any], value: str, low: str = "low", high: str = "high") -> tuple[str, str]:
    """(value, interval) as text."""
    entry = _plain(row, low, high, value)
    sign = "+" if entry["value"] is not None and entry["value"] > 0 and value in ("gap", "gain") else ""
    return sign + number(entry["value"], "percent"), interval(entry, "percent")


def _naming(retrieved: pd.DataFrame, row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(sentence, which end, z) of the class's sentences that hold the hypothesis's words, the most telling first."""
    wanted = tuple(stem for stem, *_ in words(row["hypothesis"]))
    own = retrieved[retrieved["class"] == row["class"]]
    own = own[[wanted in n_grams(text) for text in own["sentence"]]] if len(own) else own
    own = own.reindex(own["z"].abs().sort_values(ascending=False, kind="stable").index)
    own = own.drop_duplicates("sentence")[:_SENTENCES]  # a short bank stands in the lists of both ends
    return [
        (one["sentence"], "right" if one["z"] > 0 else "wrong", f"{one['z']:+.1f}") for one in own.to_dict("records")
    ]


def _examples(chosen: pd.DataFrame, dataset, gathered: Gathered) -> list[dict[str, Any]]:
    test, rows = gathered.parts["test"], gathered.rows["test"]
    made = []
    for good in (False, True):
        pictures = []
        for place in chosen[chosen["right"] == good]["place"]:
            line = dataset.index.iloc[rows[place]]
            where = " ".join(filter(None, (line["laterality"], line["view"]))) or "view unknown"
            pictures.append(
                {"uri": _picture(dataset.read(int(rows[place]))), "where": where, "score": f"{test.score[place]:.2f}"}
            )
        made.append({"heading": "decided rightly" if good else "decided wrongly", "pictures": pictures})
    return made


def _picture(canvas: np.ndarray) -> str:
    """A canvas as a data URI, no larger than the page shows it."""
    image = canvas if canvas.dtype == np.uint8 else (canvas / max(int(canvas.max()), 1) * 255).astype(np.uint8)
    factor = min(_SIDE / image.shape[0], 1.0)
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Cells are texts, or (value, what stands below it)."""
    return {"columns": list(columns), "rows": [[c if isinstance(c, tuple) else (c, "") for c in row] for row in rows]}


def _tests(tests: pd.DataFrame, label: str) -> dict[str, Any]:
    rows = []
    for row in tests.to_dict("records"):
        small = shown(pd.DataFrame({"p_": [row["p"]], "q_": [row["q"]]}))
        rows.append(
            (
                (of_slice(row, label) if row["worse"] else row["hypothesis"], row["source"]),
                (number(_none(row["accuracy_slice"]), "percent"), f"n {row['n_slice']}"),
                (number(_none(row["accuracy_rest"]), "percent"), f"n {row['n_rest']}"),
                _percent(row, "gap"),
                small["p_"][0],
                small["q_"][0],
                (row["verdict"], row["reason"]),
            )
        )
    return _table(("images", "right, in it", "right, the others", "gap", "p", "q", "verdict"), rows)


def _none(value) -> float | None:
    return None if pd.isna(value) else float(value)


def _sentences(retrieved: pd.DataFrame, label: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(sentence, z)]) of each class and end."""
    lists = []
    for (truth, end), part in retrieved.groupby(["class", "end"], sort=False) if len(retrieved) else ():
        of = label if truth else f"no {label}"
        near = part.sort_values("rank")[:_LISTED]
        lists.append(
            (f"{of}: nearer to what is decided {end}ly", list(zip(near["sentence"], [f"{z:+.1f}" for z in near["z"]])))
        )
    return lists


def _headlines(analysis: Analysis, known: str) -> list[dict[str, str]]:
    """The worst group before and after, by the first slice, and of the known one."""
    if analysis.repaired is None:
        return []
    table, cards = analysis.repaired.figures, []
    names = [analysis.repaired.names[0], *([true_name(known)] if known else [])]
    for name, figure in [(name, "worst group") for name in dict.fromkeys(names)] + [("", "balanced accuracy")]:
        rows = {
            row["model"]: row for row in table.to_dict("records") if (row["attribute"], row["figure"]) == (name, figure)
        }
        before, after = rows[CLASSIFIER], rows[REPAIRED]
        gain = _percent(after, "gain", "gain_low", "gain_high")
        cards.append(
            {
                "title": ", ".join(filter(None, (figure, name.replace("_", " ")))),
                "before": _with_range(_percent(before, "value")),
                "after": number(_none(after["value"]), "percent"),
                "range": interval(_plain(after), "percent"),
                "gain": _with_range(gain),
            }
        )
    return cards


def _with_range(texts: tuple[str, str]) -> str:
    return f"{texts[0]} ({texts[1]})" if texts[1] else texts[0]


def _models(analysis: Analysis) -> dict[str, Any] | None:
    """A row a model, a column a figure: value, interval, gain over the classifier."""
    if analysis.repaired is None:
        return None
    table = analysis.repaired.figures
    keys = list(dict.fromkeys(zip(table["attribute"], table["figure"])))
    by = {(row["model"], row["attribute"], row["figure"]): row for row in table.to_dict("records")}
    rows = []
    for model in dict.fromkeys(table["model"]):
        cells: list[Any] = [(model, "knows the true groups" if model in (DFR, DRO) else "")]
        for attribute, figure in keys:
            row = by[model, attribute, figure]
            kind = "plain" if figure == "auroc" else "percent"
            below = interval(_plain(row), kind) or row["reason"]
            if _none(row["gain"]) is not None:
                gain = _plain(row, "gain_low", "gain_high", "gain")
                below += f"; gain {number(gain['value'], kind)}" + (
                    f" ({interval(gain, kind)})" if gain["low"] is not None else ""
                )
            cells.append((number(_none(row["value"]), kind), below))
        rows.append(cells)
    headings = (", ".join(filter(None, (figure, name.replace("_", " ")))) for name, figure in keys)
    return _table(("model", *headings), rows)


def _groups(analysis: Analysis, label: str) -> dict[str, Any] | None:
    if analysis.repaired is None:
        return None
    rows = []
    for row in analysis.repaired.groups.to_dict("records"):
        if row["model"] in (CLASSIFIER, REPAIRED, MEAN_HEAD, DFR):
            group = row["group"].replace("class 0", f"no {label},").replace("class 1", f"{label},")
            value = (
                number(_none(row["accuracy"]), "percent"),
                interval(_plain(row, value="accuracy"), "percent") or row["reason"],
            )
            rows.append((row["attribute"].replace("_", " "), group, row["model"], str(row["n"]), value))
    return _table(("by", "group", "model", "images", "decided rightly"), rows)


def _fairness(table: pd.DataFrame) -> list[tuple[str, dict[str, Any]]]:
    """(column, table): a row a value and figure, both models beside each other."""
    parts = []
    for column, part in table.groupby("column", sort=False) if len(table) else ():
        rows = []
        for (value, figure), both in part.groupby(["value", "figure"], sort=False):
            cells: list[Any] = [str(value), figure]
            for model in _MODELS:
                line = both[both["model"] == model].to_dict("records")
                kind = "plain" if figure == "calibration" else "percent"
                for row in line:
                    q = shown(pd.DataFrame({"q_": [row["q"]]}))["q_"][0]
                    gap = _plain(row, value="gap")
                    if gap["value"] is None:
                        cells.append(("–", row["reason"]))
                    else:
                        sides = f"{number(row['here'], kind)}, others {number(row['rest'], kind)}"
                        cells.append((number(gap["value"], kind), f"{interval(gap, kind)}; q {q}; {sides}"))
            rows.append(cells)
        names = [said for model, said in _MODELS.items() if (part["model"] == model).any()]
        parts.append(
            (str(column).replace("_", " "), _table(("value", "figure", *(f"gap, {name}" for name in names)), rows))
        )
    return parts
