"""What a layout gives, and the pieces that several of them are made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import names
from mammoclip_jax.weights.naming import Leaf, State, Tower, from_torch, read, to_torch

IMAGENET = {"mean": 0.449, "std": 0.226, "channels": 3, "intensity": "range"}  # means over the three colours
_DENSE = Leaf("weight", "dense")


class Model(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        kind: "dual_encoder", "image_encoder", "text_encoder", "classifier", "detector" or "segmenter".
        model: `config.model`, or what of it a single encoder has.
        variables: {"params": ..., "batch_stats": ...}, nested, NumPy float32.
        image: `config.image`: what is done to pixels before they enter the network.
        preprocessing: fields of `data.pixels.render.Preprocessing`: how files become pixels.
        tokenizer: hub name of the tokenizer that the weights were trained with; "" for none.
        notes: what a user must know, one sentence each.
        unused: keys of the file without a counterpart here.
    """

    kind: str
    model: dict
    variables: dict
    image: dict
    preprocessing: dict
    text_length: int
    tokenizer: str
    notes: list[str]
    unused: list[str]


class Layout(NamedTuple):
    """One way in which a published checkpoint is laid out.

    Attributes:
        licence: key in `licences.LICENCES` of the published weights of this layout, presumed where nobody says else.
        fits: (state) -> bool, from the keys alone.
        read: (state, rest of the file, config.json or None) -> Model; UserError where the keys do not fit.
        write: (variables, meta) -> object for `torch_writer.write`, or None where there is no way back.
        adapters: whether its files keep LoRA's adapters beside the kernels; else `write` gets them merged.
    """

    title: str
    licence: str
    fits: Callable[[State], bool]
    read: Callable[[State, Mapping[str, Any], Mapping[str, Any] | None], Model]
    write: Callable[[Mapping[str, Any], Mapping[str, Any]], dict] | None = None
    adapters: bool = False


def below(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The part of a state dict below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def tower(state: State, prefix: str, naming: str = "", config: Mapping[str, Any] | None = None) -> Tower:
    """The encoder below `prefix`; `naming` is a name in `names.NAMINGS`, by default found from the keys."""
    part = below(state, prefix)
    encoder = read(names.naming(naming or names.detect(part)), part, config)
    return encoder._replace(unused=[prefix + key for key in encoder.unused])


def linear(state: State, prefix: str) -> dict[str, np.ndarray]:
    """{"kernel", and "bias" if there is one} of the linear map `prefix`weight, `prefix`bias."""
    if prefix + "weight" not in state:
        raise UserError(f"the file has no {prefix}weight: is it a whole checkpoint of this layout?")
    arrays = {"kernel": from_torch(_DENSE._replace(key=prefix + "weight"), state[prefix + "weight"])}
    if prefix + "bias" in state:
        arrays["bias"] = from_torch(Leaf(prefix + "bias"), state[prefix + "bias"])
    return arrays


def write_linear(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The way back from `linear`."""
    state = {prefix + "weight": to_torch(_DENSE, np.asarray(arrays["kernel"]))}
    return state | ({prefix + "bias": np.asarray(arrays["bias"])} if "bias" in arrays else {})


def dual_encoder(image: Tower, text: Tower, modules: Mapping[str, Any], logit_scale: np.ndarray, **options) -> dict:
    """{"model": config.model, "variables": ...} of two towers and what stands beside them at the root (`modules`).

    `options` are further fields of `config.model`: projection, pooling, ...
    """
    dim = modules["text_projection"]["dense"]["kernel"].shape[1]
    variables = {"params/logit_scale": np.asarray(logit_scale, np.float32).reshape(())}
    variables |= flatten_dict({"params": dict(modules)}, sep="/")
    for name, encoder in (("image_encoder", image), ("text_encoder", text)):
        for collection, tree in encoder.variables.items():
            variables |= flatten_dict({collection: {name: tree}}, sep="/")
    model = {"image": image.options, "text": text.options, "dim": int(dim), "dtype": "float32"} | options
    return {"model": model, "variables": unflatten_dict(variables, sep="/")}


def leftover(state: State, prefixes: tuple[str, ...], known: tuple[str, ...] = ()) -> list[str]:
    """Keys outside `prefixes`, all of which start with one of `known`.

    Raises:
        UserError: there is another key: the file holds something that would be lost.
    """
    left = [key for key in state if not key.startswith(prefixes)]
    unknown = [key for key in left if not key.startswith(known)]
    if unknown:
        raise UserError(
            f"the file holds {len(unknown)} arrays that this layout does not know: "
            f"{', '.join(unknown[:8])}. Nothing is left out silently: take them out first, or say so."
        )
    return left
