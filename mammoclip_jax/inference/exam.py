"""An exam's files → scores of views, breasts and exam, overlays and a record of all that was left out."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.data.batches.units import View, missing
from mammoclip_jax.data.exams import grouped, left_out, other_views, read
from mammoclip_jax.data.image_files import Found
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.looks import looks
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.scorers import scorer_of


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
    mirror: bool = False,
    windows: float = 0.0,
    pool: str = "",
    calibrated: bool | None = None,
    percentile: bool = False,
) -> dict[str, Any]:
    """Scores the exams in a folder: the screening views of each study of each patient (`data.exams`).

    Args:
        model: an `inference.dual_encoder.DualEncoder`; its `preprocessing` rules how files become pixels.
        out: folder for the overlays, one PNG a view and label, on the original image's pixels; None: no overlays.
        stage: of the image encoder, for the overlays; "" leaves the choice to the method.
        method: of the overlays, one of `explain.METHODS`; "": grad_cam, of a model of attributes factor.
        overlay_size: pixels of an overlay's longer side; 0 keeps the original's size.
        every_view: scores all mammograms of an exam, not only its screening views.
        mirror, windows, pool: how images are looked at, of a model that was loaded without; see `loading.load`.
        calibrated: whether scores are the calibrated ones, "uncalibrated" beside them; None: as the model was loaded.
        percentile: "percentiles" beside all scores, {label: {split: {percentile, low, high, n}}}, of breasts and exams
            {label: {"mean", "max"}} of these: the place of the score as it is among those of the sets it was measured on.

    Returns:
        JSON: "exams" [{"exam", "views", "breasts", "scores"}], where the views of a detector have "boxes" by falling
        score [{"label", "score", "box": left, top, right, bottom in the original}], those of a model of attributes
        "attributes" by falling score, as `pointing.found` with boxes in the original, and with a classifier of whole
        breasts or exams these alone have scores, and "from", the files that stand for them; each exam has "left_out"
        [{"file", "reason"}] and "missing", those of the four screening views that no view is known to be. "problems"
        [{"file", "stage", "reason", "remedy"}]; "ignored" {kind: files that are no images}; "counts" {"scored",
        "left_out", "problems", "ignored": {kind: number}}; "options", how scores were made; views of an ensemble have
        "spread", the standard deviation over its models, those scored in windows "window", the box of the highest in the
        original, by label; "prompts", "aggregation", "explains", "stage", and the
        model's "preprocessing", "preprocessing_fingerprint", "step" and "provenance".

    Raises:
        UserError: no such folder, no file in it, bad prompts, or a method that does not fit the encoder or the stage.
    """
    from mammoclip_jax.inference.looking import looking  # it imports what predicts

    pairs = load_prompts(prompts) if model.kind == "dual_encoder" else {}
    model = looking(model, looks(mirror, windows, pool))
    scorer = scorer_of(model, pairs, explain, stage, method, calibrated, percentile)
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
        "options": scorer.options,
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
