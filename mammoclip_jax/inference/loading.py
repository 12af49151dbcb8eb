"""A trained model for use: NumPy in, NumPy out, batched and jitted inside.

model = load("workdir")                    # or a model folder, a published file, a name on the hub
model.predict("exam_dir")
model.similarity(model.embed_image(pixels), model.embed_text(["a mass", "no mass"]))
"""

from pathlib import Path
from typing import Any

from mammoclip_jax.config import complete
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.attributes import Attributes
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.ensemble import Ensemble
from mammoclip_jax.inference.heads import Classifier, Detector, ImageEncoder
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.inference.looking import looking
from mammoclip_jax.inference.looks import looks as looks_of
from mammoclip_jax.inference.segmenter import Segmenter
from mammoclip_jax.training import distributed
from mammoclip_jax.training.accelerators import warn_if_idle
from mammoclip_jax.weights.opening import open_weights

KINDS = {model.kind: model for model in (Attributes, Classifier, Detector, DualEncoder, ImageEncoder, Segmenter)}


def load(
    name,
    *,
    batch_size: int | None = None,
    mirror: bool = False,
    windows: float = 0.0,
    pool: str = "",
    calibrated: bool = False,
) -> Any:
    """The model of a run or of one checkpoint in it (`workdir/checkpoints/STEP`), of a model folder, of a published
    file, or of that name on the hub; an `ImageModel`. Several in a list, or with commas between, are an ensemble.

    Args:
        batch_size: images or texts at a time on the devices; by default as many as have 8 million pixels, at most 32.
            No result depends on it.
        mirror: each image is scored as it is and mirrored (`inference.mirrored`).
        windows: how much larger than the model's images the canvas is whose windows are scored; 0: no windows
            (`inference.windows`).
        pool: how the windows' scores become one: "max", "mean", "noisy_or" or "lse"; "": max.
        calibrated: `classify` and `predict` give calibrated scores where they are not told otherwise.

    Raises:
        UserError: there is no such thing, it is a text encoder alone, or it cannot be looked at, put together or
            calibrated so.
    """
    looks = looks_of(mirror, windows, pool)
    names = listed(name)
    members = [looking(_load(one, batch_size), looks) for one in names]
    model = members[0] if len(members) == 1 else Ensemble(members)
    if calibrated:
        if model.kind != "dual_encoder":  # what one is asked for is known later
            model.reference()
        model.calibrated = True
    return model


def listed(name) -> list:
    """The models that a name, a list of names, or names with commas between stand for."""
    if isinstance(name, (list, tuple)):
        if not name:
            raise UserError("the list of models is empty: name one, or several for an ensemble.")
        return list(name)
    if "," not in str(name) or Path(name).exists():
        return [name]
    return [one.strip() for one in str(name).split(",") if one.strip()]


def _load(name, batch_size: int | None) -> ImageModel:
    variables, meta = open_weights(name)
    kind = meta["kind"]
    if kind not in KINDS:
        raise UserError(
            f"{name} holds a single encoder ({kind}), which has nothing to compare texts with: start a "
            "training from it with config.warm_start."
        )
    config = complete(meta["config"])
    distributed.enable_compilation_cache(config.compilation_cache)
    warn_if_idle()
    return KINDS[kind](variables, meta, meta["step"], batch_size=batch_size)
