"""An exam of a data set as one page, `delivery.page.exam_page`."""

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammoclip_jax.data.batches.units import View, missing
from mammoclip_jax.data.store.shards import read
from mammoclip_jax.delivery.page import exam_page
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.inference.exam import fingerprint
from mammoclip_jax.inference.overlay import grey
from mammoclip_jax.viewer.catalogue import Catalogue
from mammoclip_jax.viewer.reader import SEGMENTATION
from mammoclip_jax.viewer.side import Side

HEAT = 0.6  # opacity where a map is 1


def export(catalogue: Catalogue, side: Side, name: str, out: Path) -> Path:
    """Writes the page of the exam called `name`, with maps of all labels by the model's own method.

    Raises:
        UserError: there is no such exam.
    """
    try:
        number = catalogue.exam(name)
    except KeyError:
        raise UserError(
            f"there is no exam {name!r} in this data set: its id stands in the page's address, behind #exam=."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        exam = described(catalogue, side, number, Path(folder))
        page = exam_page(exam, _prediction(catalogue, side), folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def described(catalogue: Catalogue, side: Side, number: int, folder: Path) -> dict[str, Any]:
    """What `exam_page` takes of an exam; its pictures are written into `folder`, pixels as square as in the original."""
    images, places = catalogue.views(number), catalogue.members[number]
    canvases = read(catalogue.dataset, places)
    scores = side.of_exam(number)
    reader = side.reader
    if reader and not scores:
        scores = _scored(reader.scores(canvases))
    maps, boxes = {}, [[] for _ in places]
    if reader:
        about = reader.about()
        for label in reader.labels if about["method"] else ():
            maps[label] = reader.maps(name_of(number), lambda: canvases, label, "", about["method"], about["stage"])
        if about["detects"]:
            boxes = reader.detections(canvases)
    views = []
    for place, image in enumerate(images):
        picture, stem = grey(canvases[place]), f"{place}"
        height, width = picture.shape
        size = (width, round(height * image["tall"]))
        cv2.imwrite(str(folder / f"{stem}.png"), cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR))
        for label in maps:
            cv2.imwrite(str(folder / f"{stem}_{reader.labels.index(label)}.png"), _layer(maps[label][place]))
        views.append(
            {
                "laterality": image["laterality"] or None,
                "view": image["view"] or None,
                "notes": image["flags"],
                "scores": {
                    label: found["views"][place] for label, found in scores.items() if found["views"][place] is not None
                },
                "original": [height, width],
                "transform": {},
                "picture": f"{stem}.png",
                "maps": {label: f"{stem}_{reader.labels.index(label)}.png" for label in maps},
                "boxes": boxes[place],
                "marked": image["boxes"],
            }
        )
    return {
        "exam": f"{catalogue.dataset.info['name']} · {catalogue.exams[number]}",
        "views": views,
        "breasts": [],
        "missing": missing(View(image["laterality"], image["view"]) for image in images),
        "scores": {
            label: {"max": found["score"], "mean": float(np.nanmean(np.array(found["views"], float)))}
            for label, found in scores.items()
            if found["score"] is not None
        },
        "reports": catalogue.reports(number),
    }


def name_of(number: int) -> str:
    return f"export {number}"


def _scored(found: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        label: {"score": float(values.max()), "views": [float(value) for value in values]}
        for label, values in found.items()
    }


def _layer(heat: np.ndarray) -> np.ndarray:
    """BGRA uint8 of a map uint8 [h, w], as opaque as it is hot (inference/overlay.py: colours)."""
    colour = cv2.applyColorMap(heat, cv2.COLORMAP_TURBO)
    alpha = (255 * HEAT * np.sqrt(heat / 255)).round().astype(np.uint8)
    return np.dstack([colour, alpha])


def _prediction(catalogue: Catalogue, side: Side) -> dict[str, Any]:
    prepared = dict(catalogue.dataset.info["preprocessing"])
    if side.reader is None:
        return {"preprocessing": prepared, "model": {"name": side.name, "kind": "stored predictions"}}
    about, model = side.reader.about(), side.reader.model
    return {
        "preprocessing": prepared,
        "preprocessing_fingerprint": fingerprint(prepared),
        "model": {"name": about["name"], "kind": about["kind"], "fingerprint": model.fingerprint()},
        "step": about["step"],
        "provenance": model.provenance,
        "method": "" if about["method"] == SEGMENTATION else about["method"],
        "stage": about["stage"],
        "aggregation": {"view": about["meaning"]} if about["meaning"] else {},
    }
