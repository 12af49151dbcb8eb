"""Small forms of the image encoders, weights of them from fixed seeds, and programs compiled once a file."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import torch_images
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.models.clip_resnet import ClipResNet
from mammoclip_jax.models.convnext import ConvNext
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.resnet import ResNet
from mammoclip_jax.models.swin import Swin
from mammoclip_jax.models.vit import clip, dinov2, vit

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A network to test, and how its weights are drawn.

    Attributes:
        build: encoder of some options.
        options: of the network, with nothing random in it.
        theirs: its `torch_images.Counterpart`.
        objective: the outputs whose sum, with fixed weights, is what gradients are of.
        size: of images that no stride, patch or window divides.
        even: of images that all of them divide.
        golden: file of tests/golden, and the prefix of its keys there.
        compared: the outputs that `theirs` gives; None is all.
        short: "params/" is no part of the names in the golden file and of the seeds.
        gain, spread, other: of kernels, as a variance; of scales around 1; of other parameters.
        tolerance: of gradients.
    """

    build: Callable
    options: dict
    theirs: tuple
    objective: tuple[str, ...] = ("pooled",)
    size: tuple[int, ...] = (2, 75, 106, 3)
    even: tuple[int, ...] = (2, 96, 64, 3)
    golden: tuple[str, str] | None = None
    compared: tuple[str, ...] | None = None
    short: bool = False
    gain: float = 2.0
    spread: float = 0.2
    other: float = 0.1
    tolerance: float = 1e-7

    def model(self, dtype=jnp.float32, **changes):
        return self.build(**{"dtype": dtype, **self.options, **changes})

    def name(self, name):
        """Of a variable in the golden file and for its seed."""
        return name.removeprefix("params/") if self.short else name

    def variables(self, dtype=np.float32, channels=3):
        """Drawn by NumPy, a seed for each name; activations keep their size, attention is far from uniform."""
        values = {}
        for name, leaf in shapes(self.model(), channels).items():
            random = np.random.default_rng(zlib.crc32(self.name(name).encode()))
            kind = name.rsplit("/", 1)[1]
            if kind == "kernel":
                fan_in = np.prod(leaf.shape[:2] if leaf.ndim == 3 else leaf.shape[:-1])  # 3: depthwise
                value = random.normal(size=leaf.shape) * (self.gain / fan_in) ** 0.5
            elif kind in ("scale", "var", "lambda1", "layer_scale_parameter"):
                value = random.uniform(1 - self.spread, 1 + self.spread, leaf.shape)
            else:
                value = random.normal(size=leaf.shape) * (1.0 if kind.endswith("table") else self.other)
            values[name] = value.astype(dtype)
        return unflatten_dict(values, sep="/")


FIXED = {"drop_rate": 0.0, "drop_connect_rate": 0.0}
SLIM = FIXED | {"width": 0.25, "depth": 0.2}
TINY = {"width": 32, "depth": 2, "heads": 4, "patch": 4, "size": 20, "pooling": "cls+mean"}
efficientnets = functools.partial(
    Form,
    EfficientNet,
    theirs=torch_images.EFFICIENTNET,
    objective=("head",),
    compared=("stage1", "stage2", "stage3", "stage5", "stage7", "head"),
)
resnets = functools.partial(Form, ResNet, theirs=torch_images.RESNET, objective=("stage4",), size=(2, 70, 101, 3))
swins = functools.partial(Form, Swin, theirs=torch_images.SWIN, even=(2, 56, 112, 3), short=True, gain=1.0)
convnexts = functools.partial(Form, ConvNext, theirs=torch_images.CONVNEXT, short=True, gain=1.0)
# Away from its nominal size 20 x 20 a ViT's positions are resampled, to fewer rows and more columns here; transformers
# does so in float32.
transformers = functools.partial(
    Form,
    theirs=torch_images.DINOV2,
    objective=("last", "pooled"),
    size=(2, 12, 32, 3),
    even=(2, 20, 20, 3),
    spread=0.4,
    other=0.3,
    tolerance=1e-6,
)

FORMS = {
    "efficientnet": efficientnets({"variant": "b0"} | SLIM, golden=("efficientnet", "")),
    "efficientnet_lite": efficientnets(
        {"variant": "lite0"} | SLIM, golden=("efficientnet_lite", ""), compared=("head",)
    ),
    "resnet_basic": resnets({"variant": "18", "width": 8, "depths": (1, 2, 1, 1)}, golden=("resnet", "basic/")),
    "resnet": resnets({"variant": "50", "width": 8, "depths": (2, 1, 1, 1)}, golden=("resnet", "bottleneck/")),
    "clip_resnet": Form(
        ClipResNet,
        {"width": 8, "depths": (2, 1, 1, 1), "dim": 6, "size": 64},
        theirs=torch_images.CLIP_RESNET,
        size=(2, 70, 101, 3),
        even=(2, 64, 64, 3),
        golden=("clip_resnet", ""),
    ),
    "swin": swins({"width": 8, "depths": (2, 2), "heads": (2, 4), "drop_path_rate": 0.0}, golden=("swin", "")),
    "convnext": convnexts({"width": 8, "depths": (1, 2), "drop_path_rate": 0.0}, golden=("convnext", "")),
    "clip_vit": transformers(clip, {"variant": "base"} | TINY, theirs=torch_images.CLIP_VIT, golden=("clip_vit", "")),
    "vit": transformers(vit, {"variant": "tiny"} | TINY, theirs=torch_images.VIT),
    "dinov2_plain": transformers(dinov2, {"variant": "small"} | TINY),
    "dinov2_swiglu": transformers(dinov2, {"variant": "giant"} | TINY),
    "dinov2": transformers(dinov2, {"variant": "base", "registers": 4} | TINY),
}
# Compared live with torch alone: pads of another nominal size, other windows and eps.
OTHERS = {
    "efficientnet_b2": efficientnets({"variant": "b2"} | SLIM, size=(2, 101, 75, 3), even=(2, 64, 96, 3)),
    "swin_window": swins(
        {
            "width": 4,
            "depths": (1, 2, 1, 3),
            "heads": (1, 2, 1, 4),
            "window": 2,
            "layer_norm_eps": 1e-3,
            "drop_path_rate": 0.0,
        }
    ),
    "convnext_eps": convnexts({"width": 4, "depths": (1, 1, 1, 1), "layer_norm_eps": 1e-12, "drop_path_rate": 0.0}),
}
FULL = {
    "efficientnet_b0": efficientnets({"variant": "b0"} | FIXED),
    "resnet_18": resnets({"variant": "18", "width": 64}),
    "swin_tiny": swins({"variant": "tiny", "drop_path_rate": 0.0}, size=(1, 230, 333, 3), even=(1, 224, 224, 3)),
    "convnext_tiny": convnexts({"variant": "tiny", "drop_path_rate": 0.0}),
}


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.cache
def shapes(model, channels=3):
    """{name: shape and dtype} of the variables."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return MappingProxyType(flatten_dict(variables, sep="/"))  # kept for other tests, which nobody may change


def outputs_at(model, shape):
    """{name: shape and dtype} of the outputs for images of this shape."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    (pooled, stages), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    return stages | {"pooled": pooled}


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, train=False):
    """{stage: map, "pooled": vector}, and the running statistics."""
    (pooled, stages), new = model.apply(variables, x, train=train, mutable=["batch_stats"])
    return stages | {"pooled": pooled}, flatten_dict({"batch_stats": new.get("batch_stats", {})}, sep="/")


@functools.partial(jax.jit, static_argnums=0)
def gradients(model, variables, x, weights):
    """{parameter: gradient} of the sum of `weights` times outputs in training mode, and what `run` gives."""

    def objective(params):
        outputs, stats = run(model, variables | {"params": params}, x, True)
        return sum(jnp.sum(outputs[name] * weight) for name, weight in weights.items()), (outputs, stats)

    slopes, others = jax.grad(objective, has_aux=True)(variables["params"])
    return flatten_dict({"params": slopes}, sep="/"), *others


# --- in float64, of one size ------------------------------------------------------------------------------------------


@functools.cache
def exact(form):
    """(model, variables, images, weights of the objective)."""
    with jax.enable_x64(True):
        model, x = form.model(jnp.float64), image(form.size, dtype=np.float64)
        like = outputs_at(model, form.size)
    weights = {name: np.random.default_rng(7).normal(size=like[name].shape) for name in form.objective}
    return model, form.variables(np.float64), x, weights


@functools.cache
def evaluated(form):
    """Outputs in evaluation."""
    model, variables, x, _ = exact(form)
    with jax.enable_x64(True):
        return jax.device_get(run(model, variables, x, False)[0])


@functools.cache
def trained(form):
    """(gradients, outputs, running statistics) in training."""
    with jax.enable_x64(True):
        return jax.device_get(gradients(*exact(form)))
