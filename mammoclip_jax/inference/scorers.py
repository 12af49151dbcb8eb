"""A model and what is asked of it: scores of views, breasts and exams, and overlays on the original images."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.batches.units import UNITS, View, standing
from mammoclip_jax.data.exams import other_views
from mammoclip_jax.data.pixels import dicom, intensity
from mammoclip_jax.data.pixels.render import Preprocessing, Rendered, Source, quantise, render
from mammoclip_jax.explain.maps import peak_of
from mammoclip_jax.inference import pointing
from mammoclip_jax.inference.calibration import Reference, meant
from mammoclip_jax.inference.looks import Found, Looks, explained, found
from mammoclip_jax.inference.overlay import Pictures
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


def scorer_of(
    model,
    pairs: Mapping[str, Any],
    explain: str,
    stage: str,
    method: str,
    calibrated: bool | None = None,
    percentile: bool = False,
) -> "Scorer":
    """What scores an exam's views by `model`: a dual encoder by the prompts `pairs`, others by their labels.

    Args:
        calibrated: whether scores are the calibrated ones; None: as the model was loaded.
        percentile: whether each score has its places among those of known sets beside it.

    Raises:
        UserError: what these need was not measured for the model, as it looks, with these prompts.
    """
    method = method or ("factor" if model.kind == "attributes" else "grad_cam")
    calibrated = getattr(model, "calibrated", False) if calibrated is None else calibrated
    if model.kind == "detector":
        scorer: Scorer = _Finder(model, _by_boxes, {}, BEST_BOX, "", "boxes")
    else:
        by_prompts = functools.partial(_by_prompts, pairs=pairs, explain=explain)
        build = _by_labels if model.kind in ("classifier", "attributes") else by_prompts
        scorer = build(model, stage=model.map_stage(method, stage), method=method)
    if not (calibrated or percentile):
        return scorer
    return scorer._replace(reference=model.reference(pairs), calibrated=calibrated, percentile=percentile)


class Scorer(NamedTuple):
    """A model, and what is asked of it."""

    model: Any
    score: Callable[[Any, Any], dict[str, np.ndarray]]  # (model, preprocessed images [N, H, W]) -> {label: [N]}
    towards: dict[str, np.ndarray]  # {label: what its map differentiates}
    meaning: str
    stage: str
    method: str
    reference: Reference | None = None
    calibrated: bool = False
    percentile: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """JSON: what a score is made of, and what was measured of such scores; "models" of an ensemble."""
        members = getattr(self.model, "members", ())
        looks = getattr(self.model, "looks", Looks()).to_json()
        models = [{"step": one.step, "fingerprint": one.fingerprint()} for one in members]
        return (
            looks
            | ({"models": models} if models else {})
            | {"calibrated": self.calibrated, "percentile": self.percentile}
            | ({"measured": self.reference.said()} if self.reference else {})
        )

    @property
    def said(self) -> str:
        """What the score of a view is, for people."""
        return explained(self.meaning, self.options)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.model.preprocessing)

    @property
    def aggregation(self) -> dict[str, str]:
        """What the scores of views, breasts and exams are."""
        return self._own_maps(AGGREGATION) | {"view": self.said}

    def _own_maps(self, aggregation: Mapping[str, str]) -> dict[str, str]:
        more = "; each calibrated by a map of its own" if self.calibrated else ""
        return {name: text + more if name != "view" else text for name, text in aggregation.items()}

    def together(self, views: list[dict[str, Any]], rendered: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        """{"breasts", "scores"} of an exam, from the scores of its views, which are then calibrated where that is asked
        for; "percentiles" beside the scores of each."""
        return self._with_meaning(views, self._joined(views, rendered))

    def _joined(self, views: list[dict[str, Any]], rendered: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        del rendered
        breasts = breast_scores(views)
        return {"breasts": breasts, "scores": exam_scores(views, breasts)}

    def _with_meaning(self, views: list[dict[str, Any]], exam: dict[str, Any]) -> dict[str, Any]:
        if self.reference:
            for entry, level in (*((view, "image") for view in views), *((b, "breast") for b in exam["breasts"])):
                entry |= meant(self.reference, entry["scores"], level, self.calibrated, self.percentile)
            exam |= meant(self.reference, exam["scores"], "exam", self.calibrated, self.percentile)
        return exam

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """What is known of each view, its scores, and for each label where its map is highest in the original."""
        if not rendered:
            return []
        scores, *more = found(self.model, images_of(self.model, rendered), self.score)
        spread, window = ({label: values for label, values in part.items()} for part in more)
        return [
            {
                "file": str(path.relative_to(root)),
                "laterality": view.laterality or None,
                "view": view.view or None,
                "notes": _notes(view),
                "scores": {label: float(values[i]) for label, values in scores.items()},
                **({"spread": {label: float(values[i]) for label, values in spread.items()}} if spread else {}),
                **({"window": {label: _in_original(view, box[i]) for label, box in window.items()}} if window else {}),
                "original": list(view.transform.original),
                "transform": json.loads(view.transform.to_json()),
            }
            for i, (path, view) in enumerate(rendered)
        ]

    def add_overlays(self, views: list[dict], rendered: list[tuple[Path, Rendered]], out: Path, size: int) -> None:
        """Writes the pictures of views that have their names, and adds what `overlay.Pictures` says of them and "peaks"
        (x, y in the original) to the views."""
        if not rendered:
            return
        images, count = images_of(self.model, rendered), len(rendered)
        maps = {
            label: self.model.saliency(images, np.stack([towards] * count), stage=self.stage, method=self.method)
            for label, towards in self.towards.items()
        }
        for i, (path, view) in enumerate(rendered):
            pictures = Pictures(out, views[i], original_grey(path, self.preprocessing), size)
            views[i]["peaks"] = {}
            for label, heats in maps.items():
                peak = peak_of(heats[i])
                peak = None if peak is None else view.transform.points_inverse(np.array([peak]))[0].tolist()
                heat = view.transform.map_inverse(np.asarray(heats[i], dtype=np.float32))
                boxes = [a["box"] for a in views[i].get("attributes", ()) if a["label"] == label and a["box"]]
                pictures.add_map(label, heat, boxes, peak)
                views[i]["peaks"][label] = peak


class _Whole(Scorer):
    """A classifier of whole breasts or exams: what has a score is what it was trained on, and what is made of these."""

    @property
    def aggregation(self) -> dict[str, str]:
        unit = self.model.config.task.unit
        return self._own_maps(WHOLE[unit]) | {unit: explained(WHOLE[unit][unit], self.options)}

    def _joined(self, views: list[dict[str, Any]], rendered: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        """What is scored has "from", the files of the views that stand for it."""
        images = rendered
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

    def _scored(self, views: list[dict[str, Any]], images: list[tuple[Path, Rendered]]) -> dict[str, Any]:
        if not views:
            return {"scores": {}, "from": []}
        places, there = standing(
            [View(image.laterality, image.view, image.flags) for _, image in images], UNITS[self.model.config.task.unit]
        )
        shown = images_of(self.model, [images[place] for place in places])
        shown = [part[None] for part in shown] if isinstance(shown, tuple) else shown[None]
        (chances,) = uncalibrated(self.model, self.model.classify_views)(shown, there[None])
        return {
            "scores": _aggregate([dict(zip(self.model.labels, map(float, chances), strict=True))]),
            "from": [views[place]["file"] for place in places[there]],
        }


class _Pointer(Scorer):
    """A model of attributes: which channels show each, and where."""

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """As of a `Scorer`, with "attributes"."""
        views = Scorer.views(self, rendered, root)
        images = [view.image for _, view in rendered]
        said = pointing.found(self.model, np.stack(images), self.method, self.stage) if images else ()
        for entry, own, (_, view) in zip(views, said, rendered, strict=True):
            entry["attributes"] = [a | {"box": _in_original(view, a["box"])} for a in own]
        return views


class _Finder(Scorer):
    """A detector: a view's score is that of its best box, and its overlays show its boxes."""

    def views(self, rendered: list[tuple[Path, Rendered]], root: Path) -> list[dict[str, Any]]:
        """As of a `Scorer`, with "boxes"."""
        if not rendered:
            return []
        labels, detected = self.model.labels, self.model.detect(np.stack([view.image for _, view in rendered]))
        best = best_boxes(labels, detected)
        once = SimpleNamespace(found=lambda images, score: Found(best))
        views = Scorer.views(self._replace(model=once), rendered, root)
        for i, (_, view) in enumerate(rendered):
            found = (part[i][detected.valid[i]] for part in (detected.classes, detected.scores, detected.boxes))
            views[i]["boxes"] = [
                {"label": labels[kind], "score": float(score), "box": _in_original(view, box)}
                for kind, score, box in zip(*found, strict=True)
            ]
        return views

    def add_overlays(self, views: list[dict], rendered: list[tuple[Path, Rendered]], out: Path, size: int) -> None:
        """As of a `Scorer`; a peak is the centre of the label's best box."""
        for (path, _), view in zip(rendered, views, strict=True):
            pictures = Pictures(out, view, original_grey(path, self.preprocessing), size)
            view["peaks"] = {}
            for label in self.model.labels:
                own = [item for item in view["boxes"] if item["label"] == label][:SHOWN]
                boxes = [item["box"] for item in own]
                pictures.add_boxes(label, boxes, [item["score"] for item in own])
                view["peaks"][label] = np.reshape(boxes[0], (2, 2)).mean(0).tolist() if boxes else None


def _by_prompts(model, *, pairs, explain: str, stage: str, method: str) -> Scorer:
    return Scorer(
        model, score_of(model, pairs), directions(model, pairs, explain, method, stage), COSINES, stage, method
    )


def _by_labels(model, *, stage: str, method: str) -> Scorer:
    towards = dict(zip(model.labels, np.eye(len(model.labels), dtype=np.float32), strict=True))
    if model.kind == "attributes":
        return _Pointer(model, _by_label, towards, pointing.MEANING, stage, method)
    if model.config.task.unit != "image":
        return _Whole(model, lambda one, images: {}, towards, PROBABILITY, stage, method)
    return Scorer(model, _by_label, towards, PROBABILITY, stage, method)


def score_of(model, pairs: Mapping[str, Any]) -> Callable[[Any, Any], dict[str, np.ndarray]]:
    """(model or one that it asks, images) -> {label: [N]}, for `looks.found`: scores as they are, not calibrated."""
    if model.kind == "detector":
        return _by_boxes
    if model.kind != "dual_encoder":
        return _by_label
    bank_of = functools.cache(lambda one: text_bank(one, pairs))  # members of an ensemble have their own
    return lambda one, images: score(one.embed_image(images), bank_of(one))


def _by_label(model, images) -> dict[str, np.ndarray]:
    scores = model.attribute_scores if model.kind == "attributes" else uncalibrated(model, model.classify)
    return dict(zip(model.labels, scores(images).T, strict=True))


def _by_boxes(model, images) -> dict[str, np.ndarray]:
    return best_boxes(model.labels, model.detect(images))


def best_boxes(labels: Sequence[str], detected) -> dict[str, np.ndarray]:
    """{label: [N]}: the score of each image's best box of the label, 0 without one."""
    return {label: np.where(detected.classes == k, detected.scores, 0).max(axis=1) for k, label in enumerate(labels)}


def uncalibrated(model, scores: Callable) -> Callable:
    """`scores` of a model as they are, whatever it was loaded for."""
    return functools.partial(scores, calibrated=False) if getattr(model, "calibrated", False) else scores


def images_of(model, rendered: Sequence[tuple[Path, Rendered]]):
    """The canvases [N, H, W]; of an ensemble whose members prepare images in different ways one array for each member."""
    if not getattr(model, "mixed", False):
        return np.stack([view.image for _, view in rendered])
    fields = {str(path): view.fields._replace(laterality=view.laterality, view=view.view) for path, view in rendered}
    sources = {name: Source(name, own.laterality, own.view) for name, own in fields.items()}
    beside = {name: [sources[other] for other in others] for name, others in other_views(fields).items()}

    def canvas(path: Path, wanted: Preprocessing) -> np.ndarray:
        source = sources[str(path)]
        return render(path, wanted, source.laterality, source.view, beside[str(path)]).image

    wanted = [Preprocessing.from_dict(member.preprocessing) for member in model.members]
    return tuple(np.stack([canvas(path, own) for path, _ in rendered]) for own in wanted)


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
