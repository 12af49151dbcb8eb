"""An exam's files → scores of views, breasts and exam, and overlays on the original images."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.batches.units import UNITS, View, missing, standing
from mammoclip_jax.data.exams import grouped, left_out, other_views, read
from mammoclip_jax.data.image_files import Found
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels import dicom, intensity
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.data.pixels.render import Preprocessing, Rendered, Source, quantise, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.maps import peak_of
from mammoclip_jax.inference import pointing
from mammoclip_jax.inference.overlay import detections, picture
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.prompts import directions, score, text_bank

COSINES = "cosine to the positive texts minus cosine to the negative texts, from -2 to 2; not a probability"
PROBABILITY = "output of the classifier, from 0 to 1; a calibrated probability only where that was tested"
BEST_BOX = "score of the best box, from 0 to 1, 0 where there is none; not a calibrated probability"
SHOWN = 5  # boxes of a label in its overlay, at most; "boxes" has all
AGGREGATION = {
    "breast": "mean and max over the views of a side; an image of unknown laterality is a breast of its own",
    "exam": "mean: of the breasts' means; max: over all views",
}
WHOLE = {
    "breast": {
        "view": "not scored: the model was trained on the views of a breast together",
        "breast": "probability of the views under 'from' together: mean and max are the same",
        "exam": "mean and max over the breasts",
    },
    "exam": {
        "view": "not scored: the model was trained on the views of an exam together",
        "breast": "not scored",
        "exam": "probability of the views under 'from' together: mean and max are the same",
    },
}


def predict(
    model,
    exam: Path | str,
    out: Path | str | None = None,
    *,
    prompts: str | Mapping[str, Any] = "mammo_clip",
    explain: str = "score",
    stage: str = "",
    method: str = "",
    overlay_size: int = 0,
    every_view: bool = False,
) -> dict[str, Any]:
    """Scores the exams in a folder: the screening views of each study of each patient (`data.exams`).

    Args:
        model: an `inference.dual_encoder.DualEncoder`; its `preprocessing` rules how files become pixels.
        out: folder for the overlays, one PNG a view and label, on the original image's pixels; None: no overlays.
        stage: of the image encoder, for the overlays; "" leaves the choice to the method.
        method: of the overlays, one of `explain.METHODS`; "": grad_cam, of a model of attributes factor.
        overlay_size: pixels of an overlay's longer side; 0 keeps the original's size.
        every_view: scores all mammograms of an exam, not only its screening views.

    Returns:
        JSON: "exams" [{"exam", "views", "breasts", "scores"}], where the views of a detector have "boxes" by falling
        score [{"label", "score", "box": left, top, right, bottom in the original}], those of a model of attributes
        "attributes" by falling score, as `pointing.found` with boxes in the original, and with a classifier of whole
        breasts or exams these alone have scores, and "from", the files that stand for them; each exam has "left_out"
        [{"file", "reason"}] and "missing", those of the four screening views that no view is known to be. "problems"
        [{"file", "stage", "reason", "remedy"}]; "ignored" {kind: files that are no images}; "counts" {"scored",
        "left_out", "problems", "ignored": {kind: number}}; "prompts", "aggregation", "explains", "stage", and the
        model's "preprocessing", "preprocessing_fingerprint", "step" and "provenance".

    Raises:
        UserError: no such folder, no file in it, bad prompts, or a method that does not fit the encoder or the stage.
    """
    pairs = load_prompts(prompts) if model.kind == "dual_encoder" else {}
    scorer: _Scorer
    method = method or ("factor" if model.kind == "attributes" else "grad_cam")
    if model.kind == "detector":
        scorer = _Finder(model, lambda images: {}, {}, BEST_BOX, "", "boxes")
    else:
        by_prompts = functools.partial(_by_prompts, pairs=pairs, explain=explain)
        build = _by_labels if model.kind in ("classifier", "attributes") else by_prompts
        scorer = build(model, stage=model.map_stage(method, stage), method=method)
    root = Path(exam)
    exams, listing = [], _found(root)
    problems = [_problem(problem.file, problem) for problem in listing.problems]
    for name, files in grouped(root, listing):
        images = {file: listing.images[file] for file in files}
        reasons = left_out(images, every_view)
        rendered, bad = _render_all(
            root, {file: images[file] for file in files if file not in reasons}, scorer.preprocessing
        )
        problems += bad
        views = scorer.views(rendered, root)
        if out is not None:
            scorer.add_overlays(views, rendered, Path(out), overlay_size)
        exams.append(
            {
                "exam": name,
                "views": views,
                **scorer.together(views, rendered),
                "missing": missing([View(view["laterality"], view["view"]) for view in views]),
                "left_out": [{"file": file, "reason": reason} for file, reason in reasons.items()],
            }
        )
    ignored: dict[str, list[str]] = {}
    for other in listing.others:
        ignored.setdefault(other.kind, []).append(other.file)
    return {
        "exams": exams,
        "problems": problems,
        "ignored": ignored,
        "counts": {
            "scored": sum(len(entry["views"]) for entry in exams),
            "left_out": sum(len(entry["left_out"]) for entry in exams),
            "problems": len(problems),
            "ignored": {kind: len(files) for kind, files in ignored.items()},
        },
        "prompts": {label: pair._asdict() for label, pair in pairs.items()},
        "aggregation": scorer.aggregation,
        "explains": explain,
        "stage": scorer.stage,
        "method": scorer.method,
        "preprocessing": dict(model.preprocessing),
        "preprocessing_fingerprint": fingerprint(model.preprocessing),
        "step": model.step,
        "provenance": model.provenance,
    }


def fingerprint(preprocessing: Mapping[str, Any]) -> str:
    """Short hash of the preprocessing parameters, the same for the same parameters in any order."""
    return hashlib.sha256(json.dumps(dict(preprocessing), sort_keys=True).encode()).hexdigest()[:16]


def _found(root: Path) -> Found:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder with the exam's files.")
    listing = read(root)
    if not listing.images and not listing.problems:
        raise UserError(f"{root} holds no files to score.")
    return listing


def _render_all(root: Path, images: Mapping[str, Fields], preprocessing: Preprocessing):
    """([(file, Rendered)], problems) of an exam's files."""
    sources = {file: Source(root / file, fields.laterality, fields.view) for file, fields in images.items()}
    others = other_views(images)
    rendered, problems = [], []
    for file, (path, laterality, view) in sources.items():
        try:
            beside = [sources[other] for other in others[file]]
            rendered.append((path, render(path, preprocessing, laterality, view, beside)))
        except dicom.Unreadable as error:
            problems.append(_problem(file, error))
    return rendered, problems


def _problem(file: str, problem: Problem | dicom.Unreadable) -> dict[str, str]:
    return {"file": file, "stage": problem.stage, "reason": problem.reason, "remedy": problem.remedy}


class _Scorer(NamedTuple):
    """A model, and what is asked of it."""

    model: Any
    score: Callable[[np.ndarray], dict[str, np.ndarray]]  # preprocessed images [N, H, W] -> {label: [N]}
    towards: dict[str, np.ndarray]  # {label: what its map differentiates}
    meaning: str
    stage: str
    method: str

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.model.preprocessing)

    @property
    def aggregation(self) -> dict[str, str]:
        """What the scores of views, breasts and exams are."""
        return AGGREGATION | {"view": self.meaning}

    def together(self, views: list[dict[str, Any]], rendered: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        """{"breasts", "scores"} of an exam, from the scores of its views."""
        breasts = breast_scores(views)
        return {"breasts": breasts, "scores": exam_scores(views, breasts)}

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """What is known of each view, its scores, and for each label where its map is highest in the original."""
        if not rendered:
            return []
        images = np.stack([view.image for _, view in rendered])
        scores = self.score(images)
        return [
            {
                "file": str(path.relative_to(root)),
                "laterality": view.laterality or None,
                "view": view.view or None,
                "notes": _notes(view),
                "scores": {label: float(values[i]) for label, values in scores.items()},
                "original": list(view.transform.original),
                "transform": json.loads(view.transform.to_json()),
            }
            for i, (path, view) in enumerate(rendered)
        ]

    def add_overlays(self, views: list[dict], rendered: list[tuple[Path, Rendered]], out: Path, size: int) -> None:
        """Writes `out/overlays/FILE_LABEL.png` and adds "overlays" and "peaks" (x, y in the original) to the views."""
        if not rendered:
            return
        images = np.stack([view.image for _, view in rendered])
        maps = {
            label: self.model.saliency(images, np.stack([towards] * len(images)), stage=self.stage, method=self.method)
            for label, towards in self.towards.items()
        }
        for i, (path, view) in enumerate(rendered):
            shown = original_grey(path, self.preprocessing)
            views[i] |= {"overlays": {}, "peaks": {}}
            for label, heats in maps.items():
                peak = peak_of(heats[i])
                peak = None if peak is None else view.transform.points_inverse(np.array([peak]))[0].tolist()
                target = Path("overlays", f"{views[i]['file']}_{label}.png")
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                heat = view.transform.map_inverse(np.asarray(heats[i], dtype=np.float32))
                boxes = [a["box"] for a in views[i].get("attributes", ()) if a["label"] == label and a["box"]]
                (out / target).write_bytes(picture(shown, heat, boxes, peak, size))
                views[i]["overlays"][label], views[i]["peaks"][label] = str(target), peak


class _Whole(_Scorer):
    """A classifier of whole breasts or exams: what has a score is what it was trained on, and what is made of these."""

    @property
    def aggregation(self) -> dict[str, str]:
        return WHOLE[self.model.config.task.unit]

    def together(self, views: list[dict[str, Any]], rendered: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        """As of a `_Scorer`; what is scored has "from", the files of the views that stand for it."""
        images = [view for _, view in rendered]
        breasts = [breast(members) | {"scores": {}} for members in sides(views)]
        if self.model.config.task.unit == "exam":
            return {"breasts": breasts} | self._scored(views, images)
        for entry in breasts:
            own = [place for place, view in enumerate(views) if view["file"] in entry["files"]]
            entry |= self._scored([views[place] for place in own], [images[place] for place in own])
        return {
            "breasts": breasts,
            "scores": _aggregate(
                [{label: score["mean"] for label, score in entry["scores"].items()} for entry in breasts]
            ),
        }

    def _scored(self, views: list[dict[str, Any]], images: list[Rendered]) -> dict[str, Any]:
        if not views:
            return {"scores": {}, "from": []}
        places, there = standing(
            [View(image.laterality, image.view, image.flags) for image in images], UNITS[self.model.config.task.unit]
        )
        (chances,) = self.model.classify_views(np.stack([images[place].image for place in places])[None], there[None])
        return {
            "scores": _aggregate([dict(zip(self.model.labels, map(float, chances), strict=True))]),
            "from": [views[place]["file"] for place in places[there]],
        }


class _Pointer(_Scorer):
    """A model of attributes: which channels show each, and where."""

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """As of a `_Scorer`, with "attributes"."""
        views = _Scorer.views(self, rendered, root)
        images = [view.image for _, view in rendered]
        said = pointing.found(self.model, np.stack(images), self.method, self.stage) if images else ()
        for entry, own, (_, view) in zip(views, said, rendered, strict=True):
            entry["attributes"] = [a | {"box": _in_original(view, a["box"])} for a in own]
        return views


class _Finder(_Scorer):
    """A detector: a view's score is that of its best box, and its overlays show its boxes."""

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """As of a `_Scorer`, with "boxes"."""
        if not rendered:
            return []
        labels, detected = self.model.labels, self.model.detect(np.stack([view.image for _, view in rendered]))
        best = {
            label: np.where(detected.classes == k, detected.scores, 0).max(axis=1) for k, label in enumerate(labels)
        }
        views = _Scorer.views(self._replace(score=lambda images: best), rendered, root)
        for i, (_, view) in enumerate(rendered):
            found = (part[i][detected.valid[i]] for part in (detected.classes, detected.scores, detected.boxes))
            views[i]["boxes"] = [
                {"label": labels[kind], "score": float(score), "box": _in_original(view, box)}
                for kind, score, box in zip(*found, strict=True)
            ]
        return views

    def add_overlays(self, views: list[dict], rendered: list[tuple[Path, Rendered]], out: Path, size: int) -> None:
        """As of a `_Scorer`; a peak is the centre of the label's best box."""
        for (path, _), view in zip(rendered, views, strict=True):
            shown = original_grey(path, self.preprocessing)
            view |= {"overlays": {}, "peaks": {}}
            for label in self.model.labels:
                own = [item for item in view["boxes"] if item["label"] == label][:SHOWN]
                boxes = [item["box"] for item in own]
                target = Path("overlays", f"{view['file']}_{label}.png")
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                (out / target).write_bytes(detections(shown, (), boxes, [item["score"] for item in own], size))
                view["overlays"][label] = str(target)
                view["peaks"][label] = np.reshape(boxes[0], (2, 2)).mean(0).tolist() if boxes else None


def _by_prompts(model, *, pairs, explain: str, stage: str, method: str) -> _Scorer:
    bank = text_bank(model, pairs)
    return _Scorer(
        model,
        lambda images: score(model.embed_image(images), bank),
        directions(model, pairs, explain, method, stage),
        COSINES,
        stage,
        method,
    )


def _by_labels(model, *, stage: str, method: str) -> _Scorer:
    scores = model.attribute_scores if model.kind == "attributes" else model.classify

    def by_label(images):
        return dict(zip(model.labels, scores(images).T, strict=True))

    towards = dict(zip(model.labels, np.eye(len(model.labels), dtype=np.float32), strict=True))
    if model.kind == "attributes":
        return _Pointer(model, by_label, towards, pointing.MEANING, stage, method)
    if model.config.task.unit != "image":
        return _Whole(model, lambda images: {}, towards, PROBABILITY, stage, method)
    return _Scorer(model, by_label, towards, PROBABILITY, stage, method)


def _in_original(view: Rendered, box: np.ndarray | None) -> list[float] | None:
    """A box on the canvas in pixels of the original, cut to it."""
    height, width = view.transform.original
    return None if box is None else view.transform.boxes_inverse(box[None])[0].clip(0, [width, height] * 2).tolist()


def original_grey(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [h, w]: the whole original image, or middle frame, in the grey values that the preprocessing gives it."""
    decoded = dicom.read(path, preprocessing.frames)
    return quantise(intensity.grey(decoded, preprocessing.intensity, preprocessing.voi_item).array, 8)


def _notes(view: Rendered) -> list[str]:
    unknown = [name for name, value in (("laterality", view.laterality), ("view", view.view)) if not value]
    return [f"{name} unknown: the file does not say" for name in unknown] + list(view.flags)


def breast_scores(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and max of the views' scores for each side; an image of unknown laterality stands alone."""
    return [breast(members) | {"scores": _aggregate([v["scores"] for v in members])} for members in sides(views)]


def sides(views: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The views of each breast of an exam; an image of unknown laterality stands alone."""
    groups: dict[Any, list[dict]] = {}
    for view in views:
        groups.setdefault(view["laterality"] or ("?", view["file"]), []).append(view)
    return list(groups.values())


def breast(members: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of a breast beside its scores."""
    return {
        "laterality": members[0]["laterality"],
        "files": [v["file"] for v in members],
        "views": [v["view"] for v in members],
    }


def exam_scores(views: list[dict[str, Any]], breasts: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each label the mean over the breasts' means, and the max over all views; {} without views."""
    highest = _aggregate([v["scores"] for v in views])
    return {
        label: {"mean": float(np.mean([b["scores"][label]["mean"] for b in breasts])), "max": scores["max"]}
        for label, scores in highest.items()
    }


def _aggregate(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    labels = scores[0] if scores else ()
    return {
        label: {"mean": float(np.mean([s[label] for s in scores])), "max": float(max(s[label] for s in scores))}
        for label in labels
    }
