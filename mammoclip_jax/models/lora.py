"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on any kernel of any encoder.

A kernel W gets a frozen base and a trained product of two thin matrices: W + alpha / rank * a b, with `lora_a`
[inputs, rank] and `lora_b` [rank, outputs]. b starts at zero, so that training starts from the base model exactly.
A kernel's last axis counts its outputs and all others, flattened, its inputs: for a dense kernel [in, out] and a
convolution [k, k, in, out] this is PEFT's formula with lora_a = A^T and lora_b = B^T (a k x k convolution to `rank`
channels, then a 1 x 1 one), for a fused c_attn [in, 3 in] too.

Adapters are a tree of their own, so a step differentiates with respect to it alone:

    adapters = lora.init(params, ".*/c_attn/kernel", rank=8, key=key)
    loss = lambda adapters: loss_of(model.apply({"params": lora.merge(params, adapters, alpha=32)}, ...))
    gradients = jax.grad(loss)(adapters)

`merge` is also the exact export: the result is a plain parameter tree. What it cannot express is dropout on the
adapter's input, which differs from token to token while the base's input stays whole; MaMA trains with 0.1.
`adapted` can, and never forms the dense product, but only knows dense layers.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mammoclip_jax.errors import UserError

Tree = Mapping[str, Any]


def init(params: Tree, pattern: str, rank: int, key: Array) -> dict:
    """New adapters {..., kernel: {"lora_a", "lora_b"}} for the parameters whose slash-named path matches.

    `pattern` is a regular expression, matched from the start of the path as in `config.train.frozen`. lora_a is uniform
    within 1 / sqrt(inputs), as in PEFT; lora_b is zero; both are float32. Only the shapes of `params` are read.

    Raises:
        UserError: nothing matches, a matched parameter has fewer than two axes, or `rank` is below 1.
    """
    if rank < 1:
        raise UserError(f"LoRA's rank={rank} must be 1 or more")
    matched = {path: value.shape for path, value in flatten_dict(params, sep="/").items() if re.match(pattern, path)}
    if not matched:
        raise UserError(f"LoRA: no parameter path matches {pattern!r}")
    adapters = {}
    for (path, shape), own_key in zip(matched.items(), jax.random.split(key, len(matched)), strict=True):
        if len(shape) < 2:
            raise UserError(f"LoRA: {path} has the shape {shape}; only kernels of two axes or more can be adapted: "
                            f"narrow the pattern {pattern!r}")
        inputs, outputs = _sides(shape)
        bound = inputs ** -0.5
        adapters[f"{path}/lora_a"] = jax.random.uniform(own_key, (inputs, rank), jnp.float32, -bound, bound)
        adapters[f"{path}/lora_b"] = jnp.zeros((rank, outputs), jnp.float32)
    return unflatten_dict(adapters, sep="/")


def merge(params: Tree, adapters: Tree, alpha: float) -> dict:
    """The effective parameters: W + alpha / rank * a b where there is an adapter, and `params` elsewhere.

    Shapes and dtypes are those of `params`; products are float32. No gradient reaches `params` where the caller does
    not ask for it.

    Raises:
        UserError: an adapter has no parameter of its path, or not its shape.
    """
    effective = flatten_dict(params, sep="/")
    for path, (a, b) in _pairs(adapters).items():
        if path not in effective:
            raise UserError(f"LoRA: the adapter {path} has no parameter of that path: was it made for another model?")
        base = effective[path]
        if (a.shape[0], b.shape[1]) != _sides(base.shape):
            raise UserError(f"LoRA: the adapter {path} maps {a.shape[0]} inputs to {b.shape[1]} outputs, the "
                            f"parameter has the shape {base.shape}")
        product = jnp.dot(a, b, precision="highest").reshape(base.shape)
        effective[path] = (base + alpha / a.shape[1] * product).astype(base.dtype)
    return unflatten_dict(effective, sep="/")


@contextlib.contextmanager
def adapted(adapters: Tree, alpha: float, dropout: float = 0.0) -> Iterator[None]:
    """Within it, `model.apply` with the base parameters adds alpha / rank * drop(x) a b to each adapted layer.

    Without dropout the outputs are those of `merge`d parameters. `dropout` is the rate on the adapters' inputs; it
    needs the PRNG "dropout", and is 0 in evaluation. Enter it inside the function that is jitted or differentiated.

    Raises:
        UserError: an adapted layer is not x @ kernel (+ bias), or none of the adapters met its layer.
    """
    pairs, met = _pairs(adapters), set()

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        path = "/".join((*context.module.path, "kernel"))
        if context.method_name != "__call__" or path not in pairs:
            return y
        a, b = pairs[path]
        if context.module.get_variable("params", "kernel").ndim != 2:
            raise UserError(f"LoRA: {path} is not of a dense layer: use lora.merge, which has no dropout")
        met.add(path)
        x = args[0].astype(y.dtype)
        if dropout:
            keep = jax.random.bernoulli(context.module.make_rng("dropout"), 1 - dropout, x.shape)
            x = jnp.where(keep, x / (1 - dropout), 0)
        return y + alpha / a.shape[1] * (x @ a.astype(y.dtype) @ b.astype(y.dtype))

    with nn.intercept_methods(intercept):
        yield
    if not met:
        raise UserError(f"LoRA: no layer met its adapter ({', '.join(sorted(pairs)[:3])}, ...): "
                        "the adapters must be named from the root of the applied model")


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel."""
    return math.prod(shape[:-1]), shape[-1]


def _pairs(adapters: Tree) -> dict[str, tuple[Array, Array]]:
    """{path of the kernel: (lora_a, lora_b)}."""
    flat = flatten_dict(adapters, sep="/")
    kernels = [path.removesuffix("/lora_a") for path in flat if path.endswith("/lora_a")]
    return {path: (flat[f"{path}/lora_a"], flat[f"{path}/lora_b"]) for path in kernels}
