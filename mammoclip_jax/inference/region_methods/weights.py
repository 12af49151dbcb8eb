"""The model that finds regions: opened, fit for the data set, and what a table says of it."""

from pathlib import Path
from typing import Any

from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import licences


def check(model: Any, dataset, kind: str, method: str) -> None:
    """Raises UserError unless the model is of the kind that a method needs and learnt on images prepared like these."""
    if model.kind != kind:
        wanted = "model of attributes" if kind == "attributes" else kind.replace("_", " ")
        raise UserError(f"--method={method} needs a {wanted}, and --weights is a {model.kind}.")
    ours, theirs = (Preprocessing.from_dict(p) for p in (dataset.info["preprocessing"], model.preprocessing))
    changed = [
        f"{name} {value!r}, there {vars(theirs)[name]!r}"
        for name, value in vars(ours).items()
        if vars(theirs)[name] != value
    ]
    if changed:
        raise UserError(
            f"{dataset.path} was prepared otherwise than the images that the model learnt from: {'; '.join(changed)}. "
            "Prepare the data set as the model wants it into another folder."
        )


def depends(model: Any) -> dict[str, Any]:
    """JSON: what of a model the regions depend on."""
    return {"kind": model.kind, "step": int(model.step), "fingerprint": model.fingerprint()}


def about(model: Any, name: str, override: str = "") -> dict[str, Any]:
    """JSON that a model which learns from the regions has to go on with: terms, what was overridden, patients seen.

    Raises:
        UserError: the terms of the weights forbid that another model learns from what they say, without an override.
    """
    path = Path(name)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    overridden = licences.check("label", model.provenance, override)
    return {
        "origin": {
            "name": run.name,
            "title": model.config.get("name", ""),
            "licences": licences.inherit([model.provenance]),
            "overrides": licences.inherit_overrides([model.provenance]) + ([overridden] if overridden else []),
            "trained_on": model.trained_on,
        }
    }
