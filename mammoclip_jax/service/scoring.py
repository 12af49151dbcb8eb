"""What the model's process computes: an exam's files -> the folder of its results."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.service.spool import RESULT_JSON

VIEWS = 4  # of an exam, as a rule: a larger batch would be padding


def open_model(weights: str, options: Mapping[str, Any], warm: bool = True) -> Callable[[Path, Path], None]:
    """Opens weights once; the function that is returned scores the exam in a folder into a new folder.

    Args:
        options: of `delivery.folder.deliver`; where prompts, stage and method are "", the run's config says them.
        warm: scores an exam that is drawn here first, which compiles every program and shows that all of it works.

    Raises:
        UserError: no such weights, or options that do not fit them.
    """
    from mammoclip_jax.delivery.folder import deliver  # they import jax, which the server's own process does without
    from mammoclip_jax.inference import loading

    model = loading.load(weights, batch_size=VIEWS)
    settings = model.config.predict
    chosen = dict(options)
    chosen["prompts"] = options["prompts"] or settings.prompts
    chosen["stage"] = options["stage"] or ("" if options["method"] else settings.stage)
    chosen["method"] = options["method"] or settings.method

    def score(files: Path, out: Path) -> None:
        out.mkdir(mode=0o700)
        write_result(out, deliver(model, files, out, **chosen))

    if warm:
        _warm(score)
    return score


def _warm(score: Callable[[Path, Path], None]) -> None:
    from mammoclip_jax.data.phantom import generate

    with tempfile.TemporaryDirectory() as folder:
        generate.generate(Path(folder, "phantom"), 1)
        (exam,) = Path(folder, "phantom", generate.FOLDER).iterdir()
        score(exam, Path(folder, "out"))


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
