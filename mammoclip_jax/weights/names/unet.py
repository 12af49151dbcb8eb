"""Arrays of a plain U-Net in PyTorch state dicts, as the most used code of it (milesial/Pytorch-UNet) names them.

ours                                              theirs
image_encoder/inc/conv1/kernel, bn1/scale         inc.double_conv.{0,1}.weight
image_encoder/down2/conv2/kernel, bn2/scale       down2.maxpool_conv.1.double_conv.{3,4}.weight
up1_double/kernel, bias                           up1.up.{weight,bias}              (not where it enlarges linearly)
up1/conv1/kernel, bn1/mean                        up1.conv.double_conv.{0,1}.{weight,running_mean}
outc/kernel, bias                                 outc.conv.{weight,bias}
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.names.shapes import shape_of
from mammoclip_jax.weights.naming import KINDS, TRACKED, Leaf, State, from_torch, to_state, traced

_STEM, _OUT = "inc.double_conv.0.weight", "outc.conv.weight"
_PLACES = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4}  # in the sequence with the two ReLUs


def is_unet(state: State) -> bool:
    """Whether the keys are those of the U-Net."""
    return {_STEM, _OUT, "down1.maxpool_conv.1.double_conv.0.weight"} <= set(state)


def read(state: State) -> tuple[dict, int, int, dict, list[str]]:
    """(options of config.model.image, channels of the input, of the output, variables, keys without a counterpart).

    Raises:
        UserError: keys are missing, left over or of another shape.
    """
    shapes = {key: value.shape for key, value in state.items()}
    width, channels = shape_of(shapes, _STEM, "U-Net")[:2]
    depth = len({match[0] for key in state if (match := re.match(r"down\d+\.", key))})
    upsampling = "transposed" if "up1.up.weight" in state else "bilinear"
    image = {"name": "unet", "width": width, "depth": depth, "upsampling": upsampling}
    classes = shape_of(shapes, _OUT, "U-Net")[0]
    wanted = _shapes(image, channels, classes)
    leaves = {path: leaf(path) for path in wanted}
    keys = {place.key for place in leaves.values()}
    missing = sorted(keys - set(state))
    unknown = sorted(key for key in set(state) - keys if not key.endswith(TRACKED))
    if missing or unknown:
        raise UserError(
            f"the U-Net with {image} does not fit: missing {', '.join(missing[:6]) or 'nothing'}; unused "
            f"{', '.join(unknown[:6]) or 'nothing'}. Convolutions before a batch norm have no bias here."
        )
    variables = {}
    for path, place in leaves.items():
        variables[path] = from_torch(place, state[place.key])
        if variables[path].shape != wanted[path]:
            raise UserError(
                f"{place.key} has the shape {state[place.key].shape}, which is {variables[path].shape} for us; the "
                f"U-Net with {image} wants {wanted[path]} there."
            )
    return image, channels, classes, unflatten_dict(variables, sep="/"), sorted(set(state) - keys)


def write(variables: Mapping[str, Any]) -> State:
    """The state dict of a U-Net's variables; the way back from `read`."""
    flat = flatten_dict(dict(variables), sep="/")
    return to_state({path: leaf(path) for path in flat}, flat)


def leaf(path: str) -> Leaf:
    """Where our array at "collection/module/.../kind" is."""
    _, *modules, kind = path.split("/")
    *_, block, layer = [""] * (2 - len(modules)) + modules
    if layer == "outc":
        return Leaf(f"outc.conv.{KINDS[kind]}", "pointwise" if kind == "kernel" else "same")
    if layer.endswith("_double"):
        return Leaf(f"{layer.removesuffix('_double')}.up.{KINDS[kind]}", "transposed" if kind == "kernel" else "same")
    between = ".maxpool_conv.1" if block.startswith("down") else ".conv" if block.startswith("up") else ""
    key = f"{block}{between}.double_conv.{_PLACES[layer]}.{KINDS[kind]}"
    return Leaf(key, "conv" if kind == "kernel" else "same")


def _shapes(image: Mapping[str, Any], channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    labels = [str(i) for i in range(classes)]
    module = models.segmenter({"image": image, "labels": labels, "dtype": "float32"})
    side = 2 ** (image["depth"] + 1)
    like = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return {path: value.shape for path, value in traced(module, like).items()}
