"""Arrays of Mammo-CLIP's downstream models, an image classifier and a RetinaNet, in their PyTorch state dicts.

    classifier                                  detector
    image_encoder.*                             efficientnet.*      (with an _fc that nothing uses)
    classifier.classification_head.*            fpn.{P5_1,P5_2,P4_1,P4_2,P3_1,P3_2,P6,P7_2}.*
                                                regressionModel.{conv1,conv2,conv3,conv4,output}.*
                                                classificationModel.{conv1,conv2,conv3,conv4,output}.*

Facts from the published code: Classifiers/models/breast_clip_classifier.py, Detectors/retinanet/detector_model.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.retinanet import CELL_ANCHORS
from mammoclip_jax.weights.names.efficientnet import LUKEMELAS
from mammoclip_jax.weights.naming import Leaf, State, Tower, from_torch, read, to_torch, traced, write

_ENCODER, _BACKBONE, _HEAD = "image_encoder.", "efficientnet.", "classifier.classification_head."
_HEAD_LEAVES = {"kernel": Leaf(_HEAD + "weight", "dense"), "bias": Leaf(_HEAD + "bias")}
_MODULES = {"fpn": "fpn", "regression": "regressionModel", "classification": "classificationModel"}
_OUTPUT = "classificationModel.output.weight"
# What the published code fixes, by option of our EfficientNet; its detector has other pads.
_PUBLISHED = {"width": None, "depth": None, "pooling": "avg", "batch_norm_eps": 1e-3, "pads": "nominal"}
# The two backbones of the published detector; its C3 is the end of our stage5 (blocks 26 and 15).
_STAGES = {"b5": ("stage5", "block37", "head"), "b2": ("stage5", "block21", "head")}


def is_classifier(state: State) -> bool:
    """Whether the keys are those of the classifier."""
    return _HEAD + "weight" in state and any(key.startswith(_ENCODER) for key in state)


def is_detector(state: State) -> bool:
    """Whether the keys are those of the detector."""
    return {"fpn.P5_1.weight", "regressionModel.output.weight", _OUTPUT} <= set(state)


def read_classifier(state: State) -> tuple[dict, dict, list[str]]:
    """(options of the image encoder, variables of `models.heads.Classifier`, keys without a counterpart).

    Raises:
        UserError: keys are missing, left over or of another shape.
    """
    _check_all_known(state, (_ENCODER,), [leaf.key for leaf in _HEAD_LEAVES.values()])
    tower = _tower(state, _ENCODER)
    head = {name: _array(state, leaf) for name, leaf in _HEAD_LEAVES.items()}
    features = tower.variables["params"]["head"]["kernel"].shape[1]
    if head["kernel"].shape != (features, *head["bias"].shape):
        raise UserError(
            f"{_HEAD}weight and bias have the shapes {state[_HEAD + 'weight'].shape} and "
            f"{state[_HEAD + 'bias'].shape}, which do not belong together or to an image encoder of "
            f"{features} features."
        )
    return tower.options, _joined(tower, {"classification_head": head}), tower.unused


def write_classifier(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The checkpoint that the published code loads, {"model": state dict}; the way back from `read_classifier`.

    Raises:
        UserError: the published code has no such image encoder.
    """
    image = meta["config"]["model"]["image"]
    check_published(image, "nominal")
    head = variables["params"]["classification_head"]
    state = _encoder_state(variables, image, _ENCODER)
    return {"model": state | {leaf.key: to_torch(leaf, np.asarray(head[name])) for name, leaf in _HEAD_LEAVES.items()}}


def read_detector(state: State) -> tuple[dict, dict, list[str]]:
    """({"image", "stages", "classes"}, variables of `models.retinanet.RetinaNet`, keys without a counterpart).

    Raises:
        UserError: keys are missing, left over or of another shape, or the backbone is neither B2 nor B5.
    """
    tower = _tower(state, _BACKBONE)
    stages = _STAGES.get(tower.options["variant"])
    if stages is None:
        raise UserError(
            f"the published detector stands on {' or '.join(_STAGES)}; this backbone is "
            f"{tower.options['variant']}, and which of its maps the pyramid takes is not in the file."
        )
    image = tower.options | {"pads": "detector", "taps": [int(stages[1].removeprefix("block"))]}
    options = {"image": image, "stages": list(stages), "classes": state[_OUTPUT].shape[0] // CELL_ANCHORS}
    wanted = _detector_shapes(options, tower.channels)
    leaves = {path: _detector_leaf(path) for path in wanted}
    _check_all_known(state, (_BACKBONE,), [leaf.key for leaf in leaves.values()])
    arrays = {}
    for path, leaf in leaves.items():
        arrays[path] = _array(state, leaf)
        if arrays[path].shape != wanted[path]:
            raise UserError(
                f"{leaf.key} has the shape {state[leaf.key].shape}, which is {arrays[path].shape} for us; "
                f"a detector of {options['classes']} classes on {image['variant']} wants {wanted[path]}."
            )
    return options, _joined(tower, unflatten_dict(arrays, sep="/")), tower.unused


def write_detector(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The checkpoint that the published code loads, {"state_dict": ...}; the way back from `read_detector`.

    Raises:
        UserError: the published code has no such detector.
    """
    model = meta["config"]["model"]
    image, stages = model["image"], tuple(model["stages"])
    check_published(image, "detector")
    if model.get("text_classifier", {}).get("dim"):
        raise UserError("the published detector has no classes by text: config.model.text_classifier.dim must be 0.")
    if stages != _STAGES[image["variant"]]:
        raise UserError(
            f"the published detector takes the maps {_STAGES[image['variant']]} of {image['variant']}; "
            f"config.model.stages is {stages}."
        )
    heads = {name: variables["params"][name] for name in _MODULES}
    leaves = {path: (_detector_leaf(path), value) for path, value in flatten_dict(heads, sep="/").items()}
    state = _encoder_state(variables, image, _BACKBONE)
    state |= {leaf.key: to_torch(leaf, np.asarray(value)) for leaf, value in leaves.values()}
    # Its backbone has a classifier that is never called, but wanted when the state dict is loaded.
    classes, channels = state[_OUTPUT].shape[0] // CELL_ANCHORS, state["fpn.P5_1.weight"].shape[1]
    state |= {
        f"{_BACKBONE}_fc.weight": np.zeros((classes, channels), np.float32),
        f"{_BACKBONE}_fc.bias": np.zeros(classes, np.float32),
    }
    return {"state_dict": state}


def _detector_leaf(path: str) -> Leaf:
    """Of "fpn/P5_1/kernel", "regression/conv1/bias", ..."""
    module, layer, kind = path.split("/")
    key = f"{_MODULES[module]}.{layer}."
    return Leaf(key + "weight", "conv") if kind == "kernel" else Leaf(key + kind)


def _detector_shapes(options, channels):
    """{path: shape} of the pyramid and the subnets."""
    labels = [str(i) for i in range(options["classes"])]
    module = models.detector(options | {"labels": labels, "dtype": "float32"})
    image = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    names = {name.removeprefix("params/"): leaf.shape for name, leaf in traced(module, image).items()}
    return {name: shape for name, shape in names.items() if name.partition("/")[0] in _MODULES}


def _tower(state, prefix) -> Tower:
    tower = read(LUKEMELAS, {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    return tower._replace(unused=[prefix + key for key in tower.unused])


def _encoder_state(variables, options, prefix):
    part = {collection: tree["image_encoder"] for collection, tree in variables.items() if "image_encoder" in tree}
    return {prefix + key: value for key, value in write(LUKEMELAS, part, options).items()}


def _joined(tower, modules):
    """Variables of a model: the image encoder's below its name, and the parameters of the other modules."""
    variables = {collection: {"image_encoder": tree} for collection, tree in tower.variables.items()}
    return variables | {"params": variables["params"] | modules}


def _array(state, leaf):
    if leaf.key not in state:
        raise UserError(f"the file has no {leaf.key}: is it a whole checkpoint?")
    return from_torch(leaf, state[leaf.key])


def _check_all_known(state, prefixes, keys):
    unknown = sorted(key for key in state if not key.startswith(prefixes) and key not in keys)
    if unknown:
        raise UserError(
            f"the file holds {len(unknown)} arrays that are not known here: {', '.join(unknown[:8])}. "
            "Is it another model?"
        )


def check_published(image, pads):
    if image["name"] != "efficientnet" or image.get("variant") not in _STAGES:
        raise UserError(
            f"the published code has the EfficientNets {' and '.join(_STAGES)} here; config.model.image is "
            f"{dict(image)}."
        )
    for option, default in _PUBLISHED.items():
        wanted = pads if option == "pads" else default
        if image.get(option, default) != wanted:
            raise UserError(
                f"config.model.image.{option} is {image.get(option, default)!r}; the published code has "
                f"{wanted!r}, and would compute something else from these weights."
            )
