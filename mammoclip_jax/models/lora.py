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

`adapt` puts both to use: a model with adapters inside its own parameters, under "lora", so that one tree of parameters
is trained, saved and averaged as for any other model; `merged` takes them out again.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_options

ADAPTERS = "lora"  # their place in the parameters of an `AdaptedModel`
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
            raise UserError(
                f"LoRA: {path} has the shape {shape}; only kernels of two axes or more can be adapted: "
                f"narrow the pattern {pattern!r}"
            )
        inputs, outputs = _sides(shape)
        bound = inputs**-0.5
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
            raise UserError(
                f"LoRA: the adapter {path} maps {a.shape[0]} inputs to {b.shape[1]} outputs, the "
                f"parameter has the shape {base.shape}"
            )
        product = jnp.dot(a, b, precision="highest").reshape(base.shape)
        effective[path] = (base + alpha / a.shape[1] * product).astype(base.dtype)
    return unflatten_dict(effective, sep="/")


@contextlib.contextmanager
def adapted(adapters: Tree, alpha: float, dropout: float = 0.0, *, part: bool = False) -> Iterator[None]:
    """Within it, `model.apply` with the base parameters adds alpha / rank * drop(x) a b to each adapted layer.

    Without dropout the outputs are those of `merge`d parameters. `dropout` is the rate on the adapters' inputs; it
    needs the PRNG "dropout", and is 0 in evaluation. Enter it inside the function that is jitted or differentiated.
    With `part` the method runs some of the top modules, and the adapters of those that do not run stay idle.

    Raises:
        UserError: an adapted layer is not x @ kernel (+ bias), or an adapter did not meet its layer.
    """
    pairs, met, ran = _pairs(adapters), set(), set()

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__":
            return y  # of a module that is being made, perhaps, which has no path
        ran.update(context.module.path[:1])
        path = "/".join((*context.module.path, "kernel"))
        if path not in pairs:
            return y
        a, b = pairs[path]
        if context.module.get_variable("params", "kernel").ndim != 2:
            raise UserError(
                f"LoRA: {path} is not of a dense layer: use lora.merge, which has no dropout "
                "(config.model.lora.dropout=0)"
            )
        met.add(path)
        x = args[0].astype(y.dtype)
        if dropout:
            keep = jax.random.bernoulli(context.module.make_rng("dropout"), 1 - dropout, x.shape)
            x = jnp.where(keep, x / (1 - dropout), 0)
        return y + alpha / a.shape[1] * (x @ a.astype(y.dtype) @ b.astype(y.dtype))

    with nn.intercept_methods(intercept):
        yield
    expected = {path for path in pairs if not part or path.partition("/")[0] in ran}
    if missed := sorted(expected - met):
        listed = ", ".join(missed[:3] + ["..."] * (len(missed) > 3))
        raise UserError(
            f"LoRA: no layer met its adapter ({listed}): adapters are named from the root of the applied "
            "model, of layers that run, and with dropout outside of scanned blocks (model.image.scan=False)"
        )


@dataclass(frozen=True)
class AdaptedModel:
    """A Linen `model` with adapters: used as the model itself, its parameters are the model's and `params["lora"]`.

    With `train=True` and dropout, the adapters run beside their layers; otherwise they are merged into the kernels.
    What is frozen is the trainer's business (training/optimizer.py): all base parameters of a top module
    ("text_encoder") in which a kernel is adapted, as PEFT does with its model.

    Attributes:
        pattern: of the adapted kernels' paths from the root, as in `init`.
        rank, alpha, dropout: the product of rank `rank` is scaled by alpha / rank; dropout is that of its input.
    """

    model: nn.Module
    pattern: str
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1

    @property
    def image_encoder(self) -> nn.Module:
        return self.model.image_encoder

    @property
    def text_encoder(self) -> nn.Module:
        return self.model.text_encoder

    @property
    def heads(self) -> nn.Module | None:
        return self.model.heads

    def init(self, key: Array, *args, **kwargs) -> dict:
        """The model's variables, the same as without adapters, and fresh adapters.

        Raises:
            UserError: as `init` above, or a tower to be adapted is frozen as a whole.
        """
        variables = self.model.init(key, *args, **kwargs)
        adapters = init(variables["params"], self.pattern, self.rank, jax.random.fold_in(key, 1))
        for tower in getattr(self.model, "frozen", ()):
            if f"{tower}_encoder" in adapters:
                raise UserError(
                    f"config.model.lora adapts the {tower} tower, and config.model.frozen has {tower!r}: "
                    "its adapters would not be trained. Leave it out of frozen; LoRA freezes the base itself."
                )
        return variables | {"params": variables["params"] | {ADAPTERS: adapters}}

    def apply(self, variables: Tree, *args, train: bool = False, **kwargs) -> Any:
        """`model.apply` with the adapters at work."""
        base = dict(variables["params"])
        adapters = base.pop(ADAPTERS)
        if not (train and self.dropout):
            return self.model.apply(
                {**variables, "params": merge(base, adapters, self.alpha)}, *args, train=train, **kwargs
            )
        with adapted(adapters, self.alpha, self.dropout, part=kwargs.get("method") is not None):
            return self.model.apply({**variables, "params": base}, *args, train=train, **kwargs)


def adapt(model: nn.Module, options: Mapping[str, Any]) -> AdaptedModel:
    """The model with adapters by `options` (config.model.lora): pattern, rank, alpha, dropout.

    Raises:
        UserError: there is no pattern, an option is unknown, or dropout is no probability.
    """
    options = dict(options)
    if not options.get("pattern"):
        raise UserError(
            "config.model.lora has no pattern: give a regular expression on parameter paths, such as "
            "text_encoder/.*/c_attn/kernel"
        )
    check_options(lambda pattern, rank, alpha, dropout: None, options, "config.model.lora")
    adapted_model = AdaptedModel(model, **options)
    if not 0 <= adapted_model.dropout < 1:
        raise UserError(f"config.model.lora.dropout={adapted_model.dropout} must be at least 0 and below 1")
    return adapted_model


def merged(variables: Tree, config: Mapping[str, Any]) -> tuple[dict, dict]:
    """The same model without adapters: its variables as NumPy arrays, and `config` (config.model) without `lora`.

    A model that has none is returned as it is.

    Raises:
        UserError: config.lora is set and the variables hold no adapters.
    """
    plain, options = dict(config), dict(config.get("lora") or {})
    plain["lora"] = {}
    if not options:
        return dict(variables), plain
    base = dict(variables["params"])
    if ADAPTERS not in base:
        raise UserError(
            "config.model.lora is set, and the weights hold no adapters: they are of another run, or were "
            "merged already (then set config.model.lora to {})."
        )
    adapters = base.pop(ADAPTERS)
    params = merge(base, adapters, options.get("alpha", AdaptedModel.alpha))
    return {**variables, "params": jax.device_get(params)}, plain


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel."""
    return math.prod(shape[:-1]), shape[-1]


def _pairs(adapters: Tree) -> dict[str, tuple[Array, Array]]:
    """{path of the kernel: (lora_a, lora_b)}."""
    flat = flatten_dict(adapters, sep="/")
    kernels = [path.removesuffix("/lora_a") for path in flat if path.endswith("/lora_a")]
    return {path: (flat[f"{path}/lora_a"], flat[f"{path}/lora_b"]) for path in kernels}
