"""An exam's files → scores of views, breasts and exam, overlays and a record of all that was left out."""

import functools
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mammoclip_jax.data.batches.units import View, missing
from mammoclip_jax.data.exams import grouped, left_out, other_views, read
from mammoclip_jax.data.image_files import Found
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.looks import looks
from mammoclip_jax.inference.overlay import SIDE
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.scorers import Scorer, scorer_of


def predict(
    model,
    exam: Path | str,
    out: Path | str | None = None,
    *,
    prompts: str | Mapping[str, Any] = "mammo_clip",
    explain: str = "score",
    stage: str = "",
    method: str = "",
    overlay_size: int = SIDE,
    every_view: bool = False,
    mirror: bool = False,
    windows: float = 0.0,
    pool: str = "",
    calibrated: bool | None = None,
    percentile: bool = False,
) -> dict[str, Any]:
    """Scores the exams in a folder: the screening views of each study of each patient (`data.exams`).

    What it returns names the files, and so perhaps patients. `delivery.folder.deliver`, which the command runs, writes
    files without identities, each exam as it is done.

    Args:
        model: an `inference.dual_encoder.DualEncoder`; its `preprocessing` rules how files become pixels.
        out: folder for the pictures, `exam-0001/overlays/L-CC_mass.png` and so on (`overlay.Pictures`), the exams in
            order; None: no pictures.
        stage: of the image encoder, for the overlays; "" leaves the choice to the method.
        method: of the overlays, one of `explain.METHODS`; "": grad_cam, of a model of attributes factor.
        overlay_size: pixels of the pictures' longer side, at most; 0 keeps the original's size.
        every_view: scores all mammograms of an exam, not only its screening views.
        mirror, windows, pool: how images are looked at, of a model that was loaded without; see `loading.load`.
        calibrated: whether scores are the calibrated ones, "uncalibrated" beside them; None: as the model was loaded.
        percentile: "percentiles" beside all scores, {label: {split: {percentile, low, high, n}}}, of breasts and exams
            {label: {"mean", "max"}} of these: the place of the score as it is among those of the sets it was measured on.

    Returns:
        JSON: "exams" [{"exam", "views", "breasts", "scores"}], where a view has its "name" in the exam ("L-CC"), those of a
        detector "boxes" by falling score [{"label", "score", "box": left, top, right, bottom in the original}], those of
        a model of attributes "attributes" by falling score, as `pointing.found` with boxes in the original, and with a
        classifier of whole breasts or exams these alone have scores, and "from", the files that stand for them; each
        exam has "left_out" [{"file", "reason"}] and "missing", those of the four screening views that no view is known to
        be; views of an ensemble have "spread", the standard deviation over its models, those scored in windows "window",
        the box of the highest in the original, by label. "problems" [{"file", "stage", "reason", "remedy"}]; "ignored"
        {kind: files that are no images}; "counts" {"scored", "left_out", "problems", "ignored": {kind: number}}; and what
        `Question.about` says.

    Raises:
        UserError: no such folder, no file in it, bad prompts, or a method that does not fit the encoder or the stage.
    """
    question = Question.ask(
        model,
        prompts=prompts,
        explain=explain,
        stage=stage,
        method=method,
        every_view=every_view,
        mirror=mirror,
        windows=windows,
        pool=pool,
        calibrated=calibrated,
        percentile=percentile,
    )
    root = Path(exam)
    listing = found(root)
    problems, exams = [problem_of(problem.file, problem) for problem in listing.problems], []
    for number, (name, files) in enumerate(grouped(root, listing), start=1):
        folder = None if out is None else Path(out, f"exam-{number:04d}")
        entry, bad = question.score(root, name, {file: listing.images[file] for file in files}, folder, overlay_size)
        exams.append(entry if folder is None else placed(entry, folder.name))
        problems += bad
    ignored = ignored_files(listing)
    return {
        "exams": exams,
        "problems": problems,
        "ignored": ignored,
        "counts": counts(exams, problems, ignored),
        **question.about(),
    }


class Question(NamedTuple):
    """What is asked of a model, of any number of exams."""

    scorer: Scorer
    pairs: Mapping[str, Any]
    explain: str
    every_view: bool

    @classmethod
    def ask(
        cls,
        model,
        *,
        prompts: str | Mapping[str, Any] = "mammo_clip",
        explain: str = "score",
        stage: str = "",
        method: str = "",
        every_view: bool = False,
        mirror: bool = False,
        windows: float = 0.0,
        pool: str = "",
        calibrated: bool | None = None,
        percentile: bool = False,
    ) -> "Question":
        """As the arguments of `predict`. Raises UserError: bad prompts; a method that does not fit."""
        from mammoclip_jax.inference.looking import looking  # it imports what predicts

        pairs = load_prompts(prompts) if model.kind == "dual_encoder" else {}
        model = looking(model, looks(mirror, windows, pool))
        scorer = scorer_of(model, pairs, explain, stage, method, calibrated, percentile)
        return cls(scorer, pairs, explain, every_view)

    def about(self) -> dict[str, Any]:
        """JSON, the same for all exams: "prompts", "aggregation", "options" (how scores were made), "explains", "stage",
        "method", and the model's "preprocessing", "preprocessing_fingerprint", "step" and "provenance"."""
        model = self.scorer.model
        return {
            "prompts": {label: pair._asdict() for label, pair in self.pairs.items()},
            "aggregation": self.scorer.aggregation,
            "options": self.scorer.options,
            "explains": self.explain,
            "stage": self.scorer.stage,
            "method": self.scorer.method,
            "preprocessing": dict(model.preprocessing),
            "preprocessing_fingerprint": fingerprint(model.preprocessing),
            "step": model.step,
            "provenance": model.provenance,
        }

    def score(
        self, root: Path, name: str, images: Mapping[str, Fields], out: Path | None = None, overlay_size: int = SIDE
    ) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """One of "exams", and its "problems", of `predict`: an exam of that name with these files below `root`.

        Its pixels are let go before it returns. The paths of pictures are those below `out`.
        """
        reasons = left_out(images, self.every_view)
        wanted = {file: fields for file, fields in images.items() if file not in reasons}
        rendered, problems = _render_all(root, wanted, self.scorer.preprocessing)
        views = self.scorer.views(rendered, root)
        for view, short in zip(views, names(views), strict=True):
            view["name"] = short
        if out is not None:
            self.scorer.add_overlays(views, rendered, out, overlay_size)
        entry = {
            "exam": name,
            "views": views,
            **self.scorer.together(views, rendered),
            "missing": missing([View(view["laterality"], view["view"]) for view in views]),
            "left_out": [{"file": file, "reason": reason} for file, reason in reasons.items()],
        }
        return entry, problems


def names(views: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of an exam's views by side and view: "L-CC", "L-CC-2", "R-unknown"; they say nothing of the files."""
    plain = ["-".join(view[part] or "unknown" for part in ("laterality", "view")) for view in views]
    return [f"{name}-{n}" if (n := plain[: i + 1].count(name)) > 1 else name for i, name in enumerate(plain)]


def placed(exam: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """An exam whose pictures lie below `folder`, as the paths then say."""

    def of(view):
        kinds = (
            {kind: {label: f"{folder}/{path}" for label, path in view[kind].items()}} for kind in ("maps", "overlays")
        )
        return functools.reduce(operator.or_, kinds, dict(view)) | {"picture": f"{folder}/{view['picture']}"}

    return dict(exam) | {"views": [of(view) if "picture" in view else view for view in exam["views"]]}


def counts(exams: Sequence[Mapping], problems: Sequence, ignored: Mapping[str, Sequence]) -> dict[str, Any]:
    """The "counts" of `predict`."""
    return {
        "scored": sum(len(entry["views"]) for entry in exams),
        "left_out": sum(len(entry["left_out"]) for entry in exams),
        "problems": len(problems),
        "ignored": {kind: len(files) for kind, files in ignored.items()},
    }


def ignored_files(listing: Found) -> dict[str, list[str]]:
    """{kind: the files that are no images}."""
    ignored: dict[str, list[str]] = {}
    for other in listing.others:
        ignored.setdefault(other.kind, []).append(other.file)
    return ignored


def fingerprint(preprocessing: Mapping[str, Any]) -> str:
    """Short hash of the preprocessing parameters, the same for the same parameters in any order."""
    return hashlib.sha256(json.dumps(dict(preprocessing), sort_keys=True).encode()).hexdigest()[:16]


def found(root: Path) -> Found:
    """What lies below a folder of exams. Raises UserError: there is no such folder, or no file to score in it."""
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
            problems.append(problem_of(file, error))
    return rendered, problems


def problem_of(file: str, problem: Problem | dicom.Unreadable) -> dict[str, str]:
    """One of "problems"."""
    return {"file": file, "stage": problem.stage, "reason": problem.reason, "remedy": problem.remedy}
