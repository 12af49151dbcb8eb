"""Model FLOPs of a program, counted in its jaxpr, and what devices can do at most.

Model FLOPs (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) are those of the mathematics: 2 for each multiply-add
of matrix products and convolutions in the forward pass, 3 times that for a training step, since the backward pass has
a product for the inputs' gradient and one for the kernel's. What is recomputed, elementwise or masked does not count.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from mammoclip_jax.models.lora import AdaptedModel

TRAINING = 3  # passes over the products in a training step


class Peak(NamedTuple):
    flops: float  # dense bfloat16 products, FLOP/s; the convention is to measure float32 programs by it too
    bandwidth: float  # of the device's memory, byte/s
    clock: float | None = None  # cycles a second of a core; None where no figure is counted in them


# By `jax.Device.device_kind`. Google's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" (cloud.google.com/tpu/docs).
# NVIDIA's data sheets of A100, H100, H200, HGX B200, A40, L4, L40 and L40S, whose BFLOAT16 Tensor Core figures with
# sparsity are twice these; "NVIDIA Ada GPU Architecture" V2.01 and "NVIDIA Ampere GA102 GPU Architecture" V2.1, tables of
# RTX 4090, RTX 3090 and RTX A6000: peak BF16 Tensor TFLOPS with FP32 accumulation. Clock: the products'
# peak over what the matrix units of the core do in a cycle, 4 x 128 x 128 multiply-adds.
PEAKS = {
    "TPU v4": Peak(275e12, 1.228e12),
    "TPU v5 lite": Peak(197e12, 0.819e12, 1.5e9),
    "TPU v5e": Peak(197e12, 0.819e12, 1.5e9),
    "TPU v5": Peak(459e12, 2.765e12),
    "TPU v5p": Peak(459e12, 2.765e12),
    "TPU v6 lite": Peak(918e12, 1.638e12),
    "TPU v6e": Peak(918e12, 1.638e12),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA H100 PCIe": Peak(756e12, 2.0e12),
    "NVIDIA H100 NVL": Peak(835e12, 3.9e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA B200": Peak(2250e12, 7.7e12),
    "NVIDIA A40": Peak(149.7e12, 0.696e12),
    "NVIDIA L4": Peak(121e12, 0.3e12),
    "NVIDIA L40": Peak(181e12, 0.864e12),
    "NVIDIA L40S": Peak(362e12, 0.864e12),
    "NVIDIA RTX A6000": Peak(154.8e12, 0.768e12),
    "NVIDIA GeForce RTX 3090": Peak(71e12, 0.936e12),
    "NVIDIA GeForce RTX 4090": Peak(165.2e12, 1.008e12),
}


def peak(device_kind: str) -> Peak | None:
    """Of a kind of device; None where it is not known, as for CPUs."""
    return PEAKS.get(device_kind)


def mfu(flops: float, seconds: float, devices: int, device_kind: str) -> float | None:
    """Model FLOPs utilisation: the share of the devices' peak that `flops` in `seconds` are; None without a peak."""
    known = peak(device_kind)
    return flops / seconds / (devices * known.flops) if known else None


def model_flops(function, *args: Any) -> int:
    """FLOPs of one call of `function`, for arrays or `jax.ShapeDtypeStruct`s; nothing is computed.

    Counts dot_general and conv_general_dilated wherever they stand: in a scan times its length, in shard_map times the
    devices. Of the branches of a condition the one with most counts, so that a depthwise convolution that is written as
    shifted multiply-adds on CPU counts as the convolution it is.

    Raises:
        ValueError: products stand in a while loop whose number of passes is not known before it runs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def training_flops(trainer, config) -> int:
    """Model FLOPs of one step of a `trainer.Trainer`: three times the towers' forward pass, once of a frozen one."""
    model, batch = without_cells(trainer.model), trainer.batch
    variables = {"params": trainer.state.params, "batch_stats": trainer.state.batch_stats}
    breasts, views, height, width = batch["image"].shape
    rows = breasts * batch["token_ids"].shape[1], batch["token_ids"].shape[2]
    image = jax.ShapeDtypeStruct((breasts * views, height, width, config.image.channels), jnp.float32)
    texts = jax.ShapeDtypeStruct(rows, jnp.int32), jax.ShapeDtypeStruct(rows, bool)

    def passes(tower):
        return 1 if tower in config.model.frozen else TRAINING

    return passes("image") * model_flops(
        lambda v, *x: model.apply(v, *x, method="encode_image"), variables, image
    ) + passes("text") * model_flops(lambda v, *x: model.apply(v, *x, method="encode_text"), variables, *texts)


def without_cells(model):
    """A model or image encoder as it is away from TPUs' lanes (models/packed.py): cells' kernels are mostly zeros."""
    if isinstance(model, AdaptedModel):
        return dataclasses.replace(model, model=without_cells(model.model))
    if hasattr(model, "image_encoder"):
        return model.clone(image_encoder=without_cells(model.image_encoder))
    return model.clone(lanes=False) if getattr(model, "lanes", False) else model


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while":
        return _passes(equation) * sum(inner) if any(inner) else 0
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    return sum(inner)


def _convolution(equation) -> int:
    """Taps of an output times the outputs: a kernel [k, k, in / groups, out] has them per group already.

    Between dilated inputs are zeros, which are no work.
    """
    kernel, params = equation.invars[1].aval.shape, equation.params
    _, inputs, *spatial = params["dimension_numbers"].rhs_spec
    taps = kernel[inputs] * math.prod(kernel[axis] for axis in spatial)
    return 2 * taps * math.prod(equation.outvars[0].aval.shape) // math.prod(params["lhs_dilation"])


def _jaxprs(params):
    """The programs inside an equation; of a custom_vjp the forward one alone, since its rules are not traced yet."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _passes(equation) -> int:
    """Of a while loop from one literal up to another by ones, as `fori_loop` makes it.

    Raises:
        ValueError: it is another loop.
    """
    params = equation.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    carried = equation.invars[params["cond_nconsts"] + params["body_nconsts"] :]
    try:
        (test,) = condition.eqns
        counter = condition.invars[params["cond_nconsts"] :].index(test.invars[0])
        body_in, body_out = body.invars[params["body_nconsts"] :][counter], body.outvars[counter]
        (step,) = [e for e in body.eqns if body_out in e.outvars]
        if (test.primitive.name, step.primitive.name, step.invars[0]) == ("lt", "add", body_in) and step.invars[
            1
        ].val == 1:
            return int(test.invars[1].val) - int(carried[counter].val)
    except (AttributeError, ValueError):  # more equations, or a bound that is not a literal
        pass
    raise ValueError(
        "products stand in a while loop whose number of passes is not known before it runs; "
        "use lax.scan, or count the body by itself"
    )
