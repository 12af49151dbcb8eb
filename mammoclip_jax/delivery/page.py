"""One exam as a page that needs no server and no other file: its views as they hang, maps over them, scores, and what lacks."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammoclip_jax import pages
from mammoclip_jax.delivery.hanging import Hung, Row, Standing, chest_wall, hang, in_original
from mammoclip_jax.provenance import version, without_paths

SIDE = 1000  # pixels of a picture's longer side on the page, at most
QUALITY = 88  # of pictures, JPEG, and of maps, WebP, whose opacity is exact
OPACITY = 100  # percent of a layer's own opacity, at first
_STYLE, _SCRIPT = (Path(__file__).with_name(f"exam.{ending}") for ending in ("css", "js"))
SIDES = {"L": "left", "R": "right"}


def exam_page(exam: Mapping[str, Any], prediction: Mapping[str, Any], folder: Path | str) -> str:
    """The HTML of one exam; it asks for nothing from anywhere, and names no file.

    Args:
        exam: one of "exams" of `inference.exam.predict`. Of a view are read "laterality", "view", "notes", "scores",
            "original", "transform", "boxes", "attributes", "marked" (boxes known beforehand), "picture" (the image alone)
            and "maps" {label: a layer with its own opacity}: paths of pictures below `folder` that have the whole original
            in their frame. A view without "picture" hangs as an empty place.
            "problems", the number of its files that could not be read, may lack.
        prediction: what is said of all exams: "aggregation", "prompts", "explains", "method", "stage", "preprocessing",
            "step", "provenance"; and "model" {"name", "kind", "fingerprint" of the weights}. Each may lack.
    """
    views, labels = exam["views"], _labels(exam)
    rows = hang(_standing(view, prediction.get("preprocessing", {})) for view in views)
    script, style = _SCRIPT.read_text(encoding="utf-8"), _STYLE.read_text(encoding="utf-8")
    environment = pages.environment(Path(__file__).parent)
    return environment.get_template("exam.html.jinja").render(
        name=str(exam["exam"]),
        rows=[_row(row, views, Path(folder)) for row in rows],
        labels=labels,
        mapped=[label for label in labels if any(label in view.get("maps", {}) for view in views)],
        boxed=any(_boxes(view) for view in views),
        scores=_scores(exam, labels),
        views=[_name(view) for view in views],
        meaning=prediction.get("aggregation", {}),
        missing=list(exam.get("missing", ())),
        unread=int(exam.get("problems") or 0),
        left_out=Counter(item["reason"] for item in exam.get("left_out", ())),
        notes=[(_name(view), ", ".join(view.get("notes", ()))) for view in views if view.get("notes")],
        reports=exam.get("reports", ()),
        facts=_facts(prediction),
        opacity=OPACITY,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _labels(exam: Mapping[str, Any]) -> list[str]:
    parts = [exam.get("scores", {}), *(view.get("scores", {}) for view in exam["views"])]
    parts += [view.get("maps", {}) for view in exam["views"]]
    return list(dict.fromkeys(label for part in parts for label in part))


def _standing(view: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> Standing:
    side, transform = view.get("laterality") or "", view.get("transform", {})
    wall = chest_wall(preprocessing, side, view.get("notes", ()))
    return Standing(side, view.get("view") or "", in_original(wall, bool(transform.get("flip_horizontal"))))


def _name(view: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (view.get("laterality"), view.get("view")))) or "view unknown"


def _row(row: Row, views, folder: Path) -> dict[str, Any]:
    sides = {"R": row.left, "L": row.right}
    return {
        "view": row.view or "view unknown",
        "places": [_hung(hung, views, folder, side, row.view) for side, hung in sides.items()],
    }


def _hung(hung: Hung | None, views, folder: Path, side: str, view: str) -> dict[str, Any]:
    if hung is None:
        return {"name": f"{side} {view}".strip(), "picture": "", "side": side}
    own = views[hung.place]
    picture = _read(folder, own.get("picture"), cv2.IMREAD_GRAYSCALE)
    height, width = own.get("original") or (picture.shape if picture is not None else (1, 1))
    turned = bool(own.get("transform", {}).get("flip_vertical"))
    return {
        "name": _name(own),
        "side": side,
        "picture": ""
        if picture is None
        else _embedded(_fitted(_turned(picture, hung.mirrored, turned)), "jpeg", cv2.IMWRITE_JPEG_QUALITY),
        "width": picture.shape[1] if picture is not None else 0,
        "height": picture.shape[0] if picture is not None else 0,
        "maps": {
            label: _embedded(
                _fitted(_turned(layer, hung.mirrored, turned), SIDE // 2), "webp", cv2.IMWRITE_WEBP_QUALITY
            )
            for label, path in own.get("maps", {}).items()
            if (layer := _read(folder, path, cv2.IMREAD_UNCHANGED)) is not None
        },
        "boxes": [_placed(box, (height, width), hung.mirrored, turned) for box in _boxes(own)],
        "scores": [(label, f"{score:+.3f}") for label, score in own.get("scores", {}).items()],
    }


def _boxes(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Boxes in the original: that a detector found, where attributes are, or known beforehand."""
    found = [*view.get("boxes", ()), *(item for item in view.get("attributes", ()) if item.get("box"))]
    known = [item | {"marked": True} for item in view.get("marked", ())]
    return [{"score": None, "marked": False} | item for item in (*found, *known)]


def _placed(box: Mapping[str, Any], size, mirrored: bool, turned: bool) -> dict[str, Any]:
    """A box in percent of the picture as it hangs."""
    height, width = size
    x0, y0, x1, y1 = box["box"]
    x0, x1 = (width - x1, width - x0) if mirrored else (x0, x1)
    y0, y1 = (height - y1, height - y0) if turned else (y0, y1)
    score = "" if box["score"] is None else f"{box['score']:.2f}"
    percent = [100 * x0 / width, 100 * y0 / height, 100 * (x1 - x0) / width, 100 * (y1 - y0) / height]
    return {"label": box["label"], "score": score, "marked": box["marked"], "at": [f"{value:.3f}" for value in percent]}


def _read(folder: Path, path: str | None, how: int) -> np.ndarray | None:
    if not path:
        return None
    return cv2.imread(str(folder / path), how)


def _turned(picture: np.ndarray, mirrored: bool, turned: bool) -> np.ndarray:
    return picture[:: -1 if turned else 1, :: -1 if mirrored else 1]


def _fitted(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    scale = min(1.0, side / max(picture.shape[:2]))
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _embedded(picture: np.ndarray, kind: str, quality: int) -> str:
    content = cv2.imencode(f".{kind}", picture, [quality, QUALITY])[1]
    return f"data:image/{kind};base64," + base64.b64encode(content.tobytes()).decode()


def _scores(exam: Mapping[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    """A line a label: mean and highest of the exam, of each breast, and the score of each view; "" where there is none."""
    rows = []
    for label in labels:
        exam_score = exam.get("scores", {}).get(label)
        breasts = [(breast.get("laterality"), breast["scores"].get(label)) for breast in exam.get("breasts", ())]
        rows.append(
            {
                "label": label,
                "exam": _both(exam_score),
                "breasts": [(SIDES.get(side, "side unknown"), _both(found)) for side, found in breasts if found],
                "views": [_signed(view.get("scores", {}).get(label)) for view in exam["views"]],
            }
        )
    return rows


def _both(found: Mapping[str, float] | None) -> dict[str, str]:
    return {name: _signed(found[name]) if found else "" for name in ("mean", "max")}


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _facts(prediction: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made the page: the model and how it was asked, without paths of a machine."""
    model, prepared = prediction.get("model", {}), prediction.get("preprocessing", {})
    said = {
        "model": " · ".join(str(model[key]).replace("_", " ") for key in ("name", "kind") if model.get(key)),
        "weights": model.get("fingerprint"),
        "step": prediction.get("step"),
        "trained on": ", ".join(map(str, _trained_on(prediction.get("provenance", {})))),
        "maps": " at ".join(filter(None, (prediction.get("method"), prediction.get("stage")))),
        "maps explain": prediction.get("explains"),
        "images": "{height} x {width}, {bits} bits".format(**{"bits": 8} | dict(prepared)) if prepared else "",
        "preparation": prediction.get("preprocessing_fingerprint"),
        "program": f"mammoclip_jax {model.get('program') or version('mammoclip_jax')}",
    }
    return [(name, str(without_paths(str(value)))) for name, value in said.items() if value not in (None, "")]


def _trained_on(provenance: Mapping[str, Any]) -> list[str]:
    data = provenance.get("data") or provenance.get("datasets") or ()
    return [str(name) for name in data]
