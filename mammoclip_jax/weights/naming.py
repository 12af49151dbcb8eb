"""How an encoder's arrays are named and laid out in a PyTorch state dict, and the way between both.

A `Naming` says where each of our arrays is; reading and writing are the same table used in both directions, so that
what is read can be written back, key for key. Coverage is checked: nothing missing, nothing unused that is not listed.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError

State = Mapping[str, np.ndarray]

# Axes of PyTorch's array in the order of ours. Depthwise and 1 x 1 kernels lose their axes of length one as well.
_AXES = {
    "same": None,
    "dense": (1, 0),
    "conv": (2, 3, 1, 0),
    "depthwise": (2, 3, 0, 1),
    "transposed": (2, 3, 0, 1),
    "pointwise": (1, 0, 2, 3),
    "pointwise1d": (1, 0, 2),
    "row": None,
    "table": None,
}
_ADDED = {"row": (0, 1), "table": (0,)}  # axes of length one that ours have and theirs have not
_DROPPED = {"depthwise": (3,), "pointwise": (2, 3), "pointwise1d": (2,)}
# What PyTorch calls our arrays of convolutions and of batch norm.
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
TRACKED = "num_batches_tracked"  # beside every running mean of PyTorch: a count that nothing here needs


class Leaf(NamedTuple):
    """Where one of our arrays is in a state dict.

    Attributes:
        kind: "same"; "dense": ours [in, out], theirs [out, in]; "conv": [k, k, in, out] and [out, in, k, k];
            "transposed": [k, k, in, out] and [in, out, k, k]; "depthwise": [k, k, C] and [C, 1, k, k];
            "pointwise": [in, out] and [out, in, 1, 1]; "pointwise1d" [out, in, 1]; "row": [1, 1, C] and [C];
            "table": [1, L, C] and [L, C].
        part: (i, n) where ours is the i-th of n equal parts of theirs along its first axis (a fused qkv).
    """

    key: str
    kind: str = "same"
    part: tuple[int, int] = (0, 1)


class Naming(NamedTuple):
    """One way in which state dicts name the arrays of an encoder.

    Attributes:
        encoder: its name in `models.IMAGE_ENCODERS` or `models.TEXT_ENCODERS`.
        leaf: our slash-named path below the encoder (`block03/se/reduce/kernel`, `stem_bn/mean`) -> Leaf.
        options: ({key: shape}, content of a config.json or None) -> options of the encoder; UserError if none fit.
        signs: keys that a state dict of this naming has, all of them, and others have not.
        stem: key of an image encoder's first kernel, whose second axis counts the input channels; "" for text.
        unused: regular expression of keys without a counterpart here (whole key).
        filled: (options) -> {key: array} that strict PyTorch code wants beside ours when we write.
        layers: (options) -> {our top layer: the name that `leaf` gets in its place}, where a key depends on more than
            our name (`block03` is "stage2.0" of EfficientNet-B5).
    """

    encoder: str
    leaf: Callable[[str], Leaf]
    options: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any] | None], dict]
    signs: tuple[str, ...]
    stem: str = ""
    unused: str = ""
    filled: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]] = lambda options: {}
    layers: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda options: {}


class Tower(NamedTuple):
    """An encoder that was read: `options` for the config, with its name; `variables` {collection: nested arrays}."""

    options: dict
    variables: dict
    channels: int  # of its input; 0 for text
    unused: list[str]  # keys without a counterpart, all of which the naming knows


def read(naming: Naming, state: State, config: Mapping[str, Any] | None = None) -> Tower:
    """The encoder in a state dict whose keys have no prefix.

    Raises:
        UserError: keys are missing, left over or of another shape; the message names them.
    """
    options = naming.options({key: value.shape for key, value in state.items()}, config)
    channels = state[naming.stem].shape[1] if naming.stem else 0
    wanted = abstract(naming, options, channels)
    leaves = _leaves(naming, wanted, options)
    missing = sorted({leaf.key for leaf in leaves.values()} - set(state))
    used = {leaf.key for leaf in leaves.values()}
    unused = [key for key in state if key not in used]
    unknown = [key for key in unused if not key.endswith(TRACKED) and not re.fullmatch(naming.unused, key)]
    what = f"the {naming.encoder} with {options}"
    if missing or unknown:
        raise UserError(
            f"{what} does not fit: {_listed('missing', missing)}{_listed('unused', unknown)}"
            "Is it another architecture, or another part of the file?"
        )
    variables = {}
    for path, leaf in leaves.items():
        value = from_torch(leaf, state[leaf.key])
        if value.shape != wanted[path].shape:
            raise UserError(
                f"{leaf.key} has the shape {state[leaf.key].shape}, which is {value.shape} for us; {what} "
                f"wants {wanted[path].shape} there."
            )
        variables[path] = value
    return Tower({"name": naming.encoder} | options, unflatten_dict(variables, sep="/"), channels, unused)


def write(naming: Naming, variables: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of an encoder's variables, {collection: nested arrays}; the way back from `read`."""
    flat = flatten_dict(variables, sep="/")
    return to_state(_leaves(naming, flat, options), flat) | naming.filled(options)


def to_state(leaves: Mapping[str, Leaf], arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """PyTorch's arrays of ours at the paths of `leaves`, with the count, 0, that it has beside every running mean."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    counts = {}
    for path, leaf in leaves.items():
        parts.setdefault(leaf.key, {})[leaf.part[0]] = to_torch(leaf, np.asarray(arrays[path]))
        if path.endswith("/mean") and path.startswith("batch_stats/"):
            counts[leaf.key.rpartition(".")[0] + "." + TRACKED] = np.zeros((), np.int64)
    joined = {
        key: np.concatenate([values[i] for i in sorted(values)]) if len(values) > 1 else values[0]
        for key, values in parts.items()
    }
    return joined | counts


def abstract(naming: Naming, options: Mapping[str, Any], channels: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """{"collection/path": shape and dtype} of the encoder with these options."""
    named = {"name": naming.encoder} | dict(options)
    if channels:
        module = models.image_encoder(named)
        inputs = (jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32),)
    else:
        module = models.text_encoder(named, named.get("vocab_size"))
        inputs = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1, 8), bool)
    return traced(module, *inputs)


@functools.lru_cache(maxsize=64)
def traced(module, *inputs: jax.ShapeDtypeStruct) -> Mapping[str, jax.ShapeDtypeStruct]:
    """{"collection/path": shape and dtype} of a module's variables; kept, since tracing a large one takes seconds."""
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, train=False), *inputs)
    return MappingProxyType(flatten_dict(variables, sep="/"))


def _leaves(naming: Naming, paths: Iterable[str], options: Mapping[str, Any]) -> dict[str, Leaf]:
    """{"collection/path": where it is}."""
    layers, leaves = naming.layers(options), {}
    for path in paths:
        _, top, *rest = path.split("/")
        leaves[path] = naming.leaf("/".join([layers.get(top, top), *rest]))
    return leaves


def from_torch(leaf: Leaf, value: np.ndarray) -> np.ndarray:
    """Ours, float32, of PyTorch's array; a view where nothing has to be copied."""
    index, count = leaf.part
    if count > 1:
        value = np.split(value, count)[index]
    axes = _AXES[leaf.kind]
    value = np.expand_dims(value, _ADDED.get(leaf.kind, ()))
    if axes is not None:
        if value.ndim != len(axes):
            raise UserError(f"{leaf.key} has {value.ndim} axes, {value.shape}; a {leaf.kind} kernel has {len(axes)}.")
        value = value.transpose(axes)
        dropped = _DROPPED.get(leaf.kind, ())
        if any(value.shape[axis] != 1 for axis in dropped):
            raise UserError(f"{leaf.key} is no {leaf.kind} kernel: its shape, axes in our order, is {value.shape}.")
        value = value.squeeze(dropped)
    return np.ascontiguousarray(value, dtype=np.float32)


def to_torch(leaf: Leaf, value: np.ndarray) -> np.ndarray:
    """PyTorch's array of ours; the inverse of `from_torch`, up to the part."""
    axes = _AXES[leaf.kind]
    if axes is None:
        return value.squeeze(_ADDED[leaf.kind]) if leaf.kind in _ADDED else value
    value = np.expand_dims(value, _DROPPED.get(leaf.kind, ()))
    return np.ascontiguousarray(value.transpose(np.argsort(axes)))


def _listed(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return f"{kind} {', '.join(keys[:8])}{more}. "
