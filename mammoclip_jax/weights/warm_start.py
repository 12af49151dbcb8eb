"""Starting a model from other weights, in whole or in part.

A path here is slash-named and without its collection, `image_encoder/block00/depthwise/kernel`; batch statistics go
with the parameters of their module. What differs in shape is adapted where that has a meaning: see `_ADAPTATIONS`.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import lora
from mammoclip_jax.models.cubic import cubic_matrix
from mammoclip_jax.names import check_options, suggestion
from mammoclip_jax.weights import licences

Variables = Mapping[str, Any]

MOST_CHANNELS = 4  # of an image: a kernel with more inputs is not an encoder's first


class Report(NamedTuple):
    """What `apply` did; paths without their collection.

    Attributes:
        what: the source, for people.
        loaded: paths of the model that have the source's values, adapted ones included.
        parameters: numbers in them, batch statistics not counted.
        adapted: (path, how) of those whose shape differed.
        fresh: paths of the model that keep their initial values.
        ignored: paths of the source that were not read.
    """

    what: str
    loaded: list[str]
    parameters: int
    adapted: list[tuple[str, str]]
    fresh: list[str]
    ignored: list[str]

    def text(self) -> str:
        """A few lines for the log."""
        lines = [f"warm start from {self.what}: {len(self.loaded)} arrays loaded, {self.parameters:,} parameters"]
        lines += [f"  adapted {path}: {how}" for path, how in self.adapted]
        lines += [
            f"  {kind} {len(paths)}: {_grouped(paths)}"
            for kind, paths in (("left at their initial values", self.fresh), ("of the source not used", self.ignored))
            if paths
        ]
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """JSON: the length of each list, and the number of parameters."""
        return {
            name: value if isinstance(value, int) else len(value)
            for name, value in self._asdict().items()
            if name != "what"
        }


class Started(NamedTuple):
    """What a run started from: {name in config.warm_start: report}, {name: meta of the source}, and overrides of
    licences that the config asked for."""

    reports: dict[str, Report]
    sources: dict[str, Mapping[str, Any]]
    overrides: list[dict]

    @property
    def provenance(self) -> dict:
        """JSON for the run's own provenance: parents, licences that bind it, overrides."""
        origins = [meta["provenance"] for meta in self.sources.values()]
        parents = [
            {
                "name": name,
                "what": self.reports[name].what,
                "origin": meta["config"].get("name", ""),
                "kind": meta["kind"],
                "step": meta["step"],
                "licences": [entry.get("title") for entry in meta["provenance"].get("licences", [])],
                "patients_known": meta.get("trained_on") is not None
                and all(parent.get("patients_known") for parent in meta["provenance"].get("parents", ())),
                "report": self.reports[name].counts(),
            }
            for name, meta in self.sources.items()
        ]
        return {
            "parents": parents,
            "licences": licences.inherit(origins),
            "overrides": licences.inherit_overrides(origins) + self.overrides,
        }

    def to_json(self) -> dict:
        return {
            "provenance": self.provenance,
            "reports": {name: report._asdict() for name, report in self.reports.items()},
        }

    def differences(self, meta: Mapping[str, Any]) -> list[str]:
        """For each dual encoder whose both towers were taken: a line for people if its images were prepared otherwise.

        `meta` is the run's: preprocessing and config.image are compared.
        """
        lines = []
        for name, source in self.sources.items():
            towers = {path.partition("/")[0] for path in self.reports[name].loaded}
            if source["kind"] != "dual_encoder" or not {"image_encoder", "text_encoder"} <= towers:
                continue
            pairs = (
                (source.get("preprocessing"), meta["preprocessing"], ""),
                (source["config"].get("image"), meta["config"]["image"], "config.image."),
            )
            changed = [
                f"{prefix}{key} {theirs[key]!r} -> {ours[key]!r}"
                for theirs, ours, prefix in pairs
                for key in ours
                if theirs and key in theirs and theirs[key] != ours[key]
            ]
            if changed:
                lines.append(
                    f"{self.reports[name].what} was trained on images prepared otherwise than this run's: "
                    + ", ".join(changed)
                )
        return lines


def start(fresh: Variables, options: Mapping[str, Mapping[str, Any]], open_weights: Callable) -> tuple[dict, Started]:
    """`fresh` with the weights of every entry of `config.warm_start`, in the order of `options`.

    An entry has `weights` (what `open_weights` takes: str -> (variables, meta); "" leaves the entry out), and may have
    `load` and `skip` as in `apply`, and `override`, the reason why a licence that forbids it is set aside. Adapters of
    LoRA in a source are merged into its kernels first; this run's own begin afresh.

    Raises:
        UserError: as `apply`; an option is unknown; or the licence of the weights forbids it.
    """
    variables, started = dict(fresh), Started({}, {}, [])
    for name, entry in options.items():
        check_options(lambda weights, load, skip, override: None, entry, f"config.warm_start.{name}")
        if "weights" not in entry:
            raise UserError(
                f"config.warm_start.{name} has no `weights`: name a run, a model folder, a file or a model on the hub."
            )
        if not entry["weights"]:
            logging.info("config.warm_start.%s names no weights: nothing is loaded for it", name)
            continue
        source, meta = open_weights(entry["weights"])
        override = licences.check("initialise", meta["provenance"], entry.get("override", ""))
        started.overrides.extend([override] if override else [])
        source, _ = lora.merged(source, meta["config"]["model"])
        variables, report = apply(
            variables,
            source,
            what=str(entry["weights"]),
            **{key: _expressions(entry.get(key, ())) for key in ("load", "skip")},
        )
        logging.info("config.warm_start.%s: %s", name, report.text())
        started.reports[name], started.sources[name] = report, meta
    return variables, started


def apply(
    fresh: Variables, source: Variables, *, load: Iterable[str] = (), skip: Iterable[str] = (), what: str
) -> tuple[dict, Report]:
    """The variables `fresh` with the values of `source` where they have the same path.

    Args:
        fresh: {collection: nested arrays} of the whole model, freshly initialised.
        source: the same of a model, or of a part of one, at the paths that the part has in the whole.
        load: regular expressions on the model's paths, from their start; () takes all that the source has.
        skip: the same, of what keeps its initial values.
        what: where the source comes from, for messages.

    Returns:
        the variables, with NumPy arrays of the model's dtypes where they were loaded, and a report.

    Raises:
        UserError: an expression matches nothing, a path that `load` names is not in the source, nothing at all is
            loaded, or two shapes differ in a way that has no meaning.
    """
    load, skip = tuple(load), tuple(skip)
    targets, sources = (flatten_dict(dict(tree), sep="/") for tree in (fresh, source))
    chosen = _selected(targets, sources, load, skip, what)
    missing = sorted(_bare(path) for path in chosen if path not in sources)
    if load and missing:
        raise UserError(
            f"{what} has no {_few(missing)}, which config.warm_start wants to load. It has "
            f"{_grouped(_bare(path) for path in sources)}: narrow `load`, or name them in `skip`."
        )
    values, loaded, adapted, parameters = dict(targets), [], [], 0
    for path in (path for path in targets if path in chosen and path in sources):
        value, how = _fitted(path, targets, np.asarray(sources[path]), what)
        values[path] = value.astype(targets[path].dtype)
        loaded.append(path)
        parameters += value.size if path.startswith("params/") else 0
        adapted += [(_bare(path), how)] if how else []
    if not loaded:
        raise UserError(
            f"{what} has nothing that this model could start from: it has "
            f"{_grouped(_bare(path) for path in sources)}, the model "
            f"{_grouped(_bare(path) for path in targets)}."
        )
    used = set(loaded)
    return unflatten_dict(values, sep="/"), Report(
        what,
        [_bare(path) for path in loaded],
        parameters,
        adapted,
        fresh=[_bare(path) for path in targets if path not in used],
        ignored=[_bare(path) for path in sources if path not in used],
    )


def _expressions(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _selected(targets, sources, load, skip, what) -> set[str]:
    """Paths of the model to be loaded, by the expressions alone."""
    names = {_bare(path) for path in targets}
    for field, rules, known in (("load", load, names), ("skip", skip, names | {_bare(path) for path in sources})):
        for rule in rules:
            if not any(re.match(rule, name) for name in known):
                raise UserError(
                    f"config.warm_start, {what}: {field} matches no path with {rule!r}."
                    f"{suggestion(rule, known)} The parameter table in a run's log.txt lists all paths."
                )

    def hit(name):
        return (not load or any(re.match(rule, name) for rule in load)) and not any(
            re.match(rule, name) for rule in skip
        )

    params = {path for path in targets if path.startswith("params/") and hit(_bare(path))}
    modules = {_module(path) for path in targets if path.startswith("params/")}
    chosen_modules = {_module(path) for path in params}
    statistics = {
        path
        for path in targets
        if not path.startswith("params/")
        and (_module(path) in chosen_modules if _module(path) in modules else hit(_bare(path)))
    }
    return params | statistics


def _fitted(path: str, targets: Mapping[str, Any], value: np.ndarray, what: str) -> tuple[np.ndarray, str]:
    """The source's value in the shape of the model's, and how that was done ('' where it fits as it is)."""
    target = targets[path]
    if value.shape == target.shape:
        return value, ""
    for pattern, adapt in _ADAPTATIONS.items():
        if re.fullmatch(pattern, _bare(path)):
            result = adapt(path, targets, value)
            if result is not None:
                return result
    raise UserError(
        f"{_bare(path)} has the shape {tuple(target.shape)} in this model and {value.shape} in {what}: "
        f"change config.model to fit, or name it in config.warm_start's skip to start it afresh."
    )


def _patch_positions(path, targets, value):
    """[1, 1 + n, C] of a square grid to another, bicubically, as the model does for an image of another size."""
    target = targets[path]
    sides = [math.isqrt(max(shape[1] - 1, 0)) for shape in (value.shape, target.shape)]
    if (
        len(value.shape) != 3
        or value.shape[2] != target.shape[2]
        or any(side * side + 1 != shape[1] for side, shape in zip(sides, (value.shape, target.shape)))
    ):
        return None
    old, new = sides
    antialias = f"{path.rpartition('/')[0]}/register_tokens" in targets  # as models.vit.dinov2 has it
    matrix = cubic_matrix(old, new, antialias)
    grid = np.einsum("hg,wk,gkc->hwc", matrix, matrix, value[0, 1:].reshape(old, old, -1))
    resampled = np.concatenate([value[:, :1], grid.reshape(1, new * new, -1)], axis=1)
    return resampled, f"positions resampled from a grid of {old} x {old} to {new} x {new}"


def _token_positions(path, targets, value):
    """Positions count from the text's start, so the first ones mean the same at any length."""
    target = targets[path]
    if value.shape[1:] != target.shape[1:]:
        return None
    if len(value) > len(target):
        return value[: len(target)], f"the first {len(target)} of {len(value)} positions"
    return _extended(value, target), f"the {len(value)} positions there are, the last {len(target) - len(value)} fresh"


def _tokens(path, targets, value):
    """More tokens, such as special ones, are added behind; fewer would shift meanings, and are refused."""
    target = targets[path]
    if value.shape[1:] != target.shape[1:] or len(value) > len(target):
        return None
    return _extended(value, target), f"the {len(value)} tokens there are, the last {len(target) - len(value)} fresh"


def _stem(path, targets, value):
    """[k, k, in, out] with other image channels: a grey image, repeated in all of them, gives the same output."""
    target = targets[path]
    old, new = value.shape[2] if value.ndim == 4 else 0, target.shape[2] if len(target.shape) == 4 else 0
    if not (0 < old <= MOST_CHANNELS and 0 < new <= MOST_CHANNELS) or value[:, :, 0].shape != target[:, :, 0].shape:
        return None
    fitted = np.repeat(value.sum(axis=2, keepdims=True) / new, new, axis=2)
    return fitted, f"kernel of {old} image channels to {new}, for a grey image the same"


_ADAPTATIONS: dict[str, Callable] = {
    r"image_encoder/.*kernel": _stem,
    r"image_encoder/(.*/)?position_embeddings": _patch_positions,
    r"text_encoder/(.*/)?(position_embeddings?|wpe)/embedding": _token_positions,
    r"text_encoder/(.*/)?(word_embeddings|token_embedding|tok_embeddings|wte)/embedding": _tokens,
}


def _extended(value, target):
    return np.concatenate([value, np.asarray(target)[len(value) :]])


def _bare(path: str) -> str:
    return path.partition("/")[2]


def _module(path: str) -> str:
    """Of an array: "image_encoder/stem_bn" of batch_stats/image_encoder/stem_bn/mean."""
    return _bare(path).rpartition("/")[0]


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _grouped(paths: Iterable[str]) -> str:
    """'image_encoder (120), logit_scale': by top module, with how many paths each has."""
    counts: dict[str, int] = {}
    for path in paths:
        top = path.partition("/")[0]
        counts[top] = counts.get(top, 0) + 1
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in counts.items())
