"""A classifier with another last layer for one label, as a model folder: what `slices` repairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.heads import HEAD
from mammoclip_jax.weights import actions, licences


def check(
    classifier: Mapping[str, Any], language: Mapping[str, Any] | None, override: str = ""
) -> list[dict[str, Any]]:
    """Overrides to record, where the terms behind two provenances allow a repaired model; `language` may be None.

    It starts from the classifier, learns from groups that the language model found, and is written for others.

    Raises:
        UserError: terms forbid one of that, and nothing was overridden.
    """
    wanted = [("initialise", classifier), ("export", classifier)]
    wanted += [("label", language), ("export", language)] if language is not None else []
    records = [licences.check(action, provenance, override) for action, provenance in wanted]
    return [record for record in records if record]


def with_head(
    variables: Mapping[str, Any], meta: Mapping[str, Any], label: str, weights: Float[np.ndarray, " c"], bias: float
) -> dict[str, Any]:
    """The variables of a classifier with this logit for one of its labels; those of the other labels stay.

    Raises:
        UserError: the label is not the classifier's, or the weights are not of its features.
    """
    labels = list(meta["config"]["model"]["labels"])
    if label not in labels:
        raise UserError(f"the classifier has no label {label!r}, only {', '.join(labels)}.")
    old = variables["params"][HEAD]
    kernel, biases = (np.array(old[name]) for name in ("kernel", "bias"))
    if kernel.shape[0] != len(weights):
        raise UserError(f"the classifier has {kernel.shape[0]} features, the repaired head {len(weights)}.")
    kernel[:, labels.index(label)], biases[labels.index(label)] = weights, bias
    head = {**old, "kernel": kernel, "bias": biases}
    return {**variables, "params": {**variables["params"], HEAD: head}}


def write(
    out: str | Path,
    variables: Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    label: str,
    weights: Float[np.ndarray, " c"],
    bias: float,
    how: str,
    language: Mapping[str, Any] | None = None,
    trained_on: str | None = None,
    overrides: Sequence[dict[str, Any]] = (),
) -> Path:
    """Writes the model folder, which `load`, `predict` and `evaluate` take; returns its path.

    Args:
        variables, meta: of the classifier (`opening.open_weights`).
        weights, bias: of the label's logit, over pooled features.
        how: a sentence on how it was repaired, for the model card.
        language: kind, step, config, provenance of the language model that found the groups; its terms bind the new
            model too. None where only metadata did.
        trained_on: record of all patients behind it (`provenance.trained_on_rows`), those of the repair too.
        overrides: of `check`.

    Raises:
        UserError: as `with_head` and `folder.write`.
    """
    parents = {"classifier": meta} | ({"language model": language} if language is not None else {})
    provenance = licences.joined(
        dict(meta["provenance"]),
        {
            "parents": [_parent(what, parent) for what, parent in parents.items()],
            "licences": licences.inherit(
                parent["provenance"] for what, parent in parents.items() if what != "classifier"
            ),
            "overrides": licences.inherit_overrides(parent["provenance"] for parent in parents.values())
            + list(overrides),
            "notes": [*meta["provenance"].get("notes", []), how],
        },
    )
    name = meta["config"].get("name") or "classifier"
    config = {**meta["config"], "name": f"{name}, repaired for {label}"}
    new = {**meta, "config": config, "provenance": provenance, "trained_on": trained_on or meta.get("trained_on")}
    variables, new = actions.merged(with_head(variables, meta, label, weights, bias), new)
    actions.write_folder(str(out), variables, new)
    return Path(out)


def _parent(what: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """As `warm_start` notes parents."""
    return {
        "name": what,
        "what": f"the {what} of a repair",
        "origin": meta["config"].get("name", ""),
        "kind": meta["kind"],
        "step": int(meta["step"]),
        "licences": [entry.get("title") for entry in licences.terms(meta["provenance"])],
        "patients_known": meta.get("trained_on") is not None,
    }
