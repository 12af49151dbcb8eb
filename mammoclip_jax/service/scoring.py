"""What the model's process computes: an exam's files -> the folder of its results."""

import csv
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.service.spool import RESULT_JSON

VIEWS = 4  # of an exam, as a rule: a larger batch would be padding


def open_model(weights: str, options: Mapping[str, Any]) -> Callable[[Path, Path], None]:
    """`scorer` of weights; where prompts, stage and method are "", the run's config says them.

    Raises:
        UserError: no such weights, or options that do not fit them.
    """
    from mammoclip_jax.inference import loading  # it imports jax, which the server's own process does without

    model = loading.load(weights, batch_size=VIEWS)
    settings = model.config.predict
    chosen = {
        "prompts": options["prompts"] or settings.prompts,
        "stage": options["stage"] or ("" if options["method"] else settings.stage),
        "method": options["method"] or settings.method,
    }
    return scorer(model, options | chosen)


def scorer(model, options: Mapping[str, Any]) -> Callable[[Path, Path], None]:
    """A function that scores the exam in a folder into a new folder, with a report of DICOM.

    An exam that is drawn here is scored first, which compiles every program and shows that all of it works.

    Args:
        options: of `delivery.folder.deliver`.
    """
    from mammoclip_jax.delivery.folder import deliver
    from mammoclip_jax.delivery.pseudonyms import sources_file

    def score(files: Path, out: Path) -> None:
        result = deliver(model, files, out, dicom=True, **options)
        write_result(out, with_files(result, sources_file(out)))

    _warm(score)
    return score


def _warm(score: Callable[[Path, Path], None]) -> None:
    from mammoclip_jax.data.phantom import generate
    from mammoclip_jax.data.phantom.exam import Parameters

    with tempfile.TemporaryDirectory() as folder:
        generate.generate(Path(folder, "phantom"), 1, Parameters(height=160, width=128))
        (exam,) = Path(folder, "phantom", generate.FOLDER).iterdir()
        score(exam, Path(folder, "out"))


def with_files(result: Mapping[str, Any], sources: Path) -> dict[str, Any]:
    """What `deliver` returned, with the names that its sender was told for the hashes of names: they name nobody.

    Args:
        sources: the table of `deliver` that says which is which.
    """
    with open(sources, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    of_exam = {(row["exam"], row["file"]): row["source"] for row in rows}
    of_any = {row["file"]: row["source"] for row in rows}
    exams = [
        exam
        | {
            "views": [view | {"source": of_exam[exam["exam"], view["file"]]} for view in exam["views"]],
            "left_out": [item | {"file": of_any[item["file"]]} for item in exam["left_out"]],
        }
        for exam in result["exams"]
    ]
    problems = [problem | {"file": of_any[problem["file"]]} for problem in result["problems"]]
    return dict(result) | {"exams": exams, "problems": problems}


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    """Writes the record of an exam as strict JSON: what is not finite becomes null."""
    (out / RESULT_JSON).write_text(json.dumps(_plain(result), allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int)) or value is None else str(value)
