"""One block of an EfficientNet in training, by itself, so that it can be compiled and measured."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import packed
from mammoclip_jax.models.efficientnet import _POLICIES, _STEM, EfficientNet, block_name
from mammoclip_jax.models.layers import Place
from mammoclip_jax.models.mbconv import Block, BlockSpec


class LoneBlock(NamedTuple):
    """Forward and backward pass of a block with drop-connect, what the encoder's remat says computed again.

    Attributes:
        run: (variables, x, gradient of the output, PRNG key) -> (output, updated statistics, gradients of (params, x)).
        x, gradient: shapes [H, W, N, C] in which a TPU has the maps of an encoder with `lanes`, in the cells that this
            block and the next one take (packed.py).
    """

    spec: BlockSpec
    run: Callable
    variables: dict
    x: jax.ShapeDtypeStruct
    gradient: jax.ShapeDtypeStruct


def lone_block(encoder: EfficientNet, index: int, images: int, height: int, width: int) -> LoneBlock:
    """Block `index` (from 0) of an encoder that is given so many images of this size.

    Raises:
        UserError: the encoder has no such block.
    """
    specs = encoder._specs()
    if not 0 <= index < len(specs):
        raise UserError(f"EfficientNet {encoder.variant} has no block {index}: {len(specs)} blocks from 0.")
    sides, table = (height, width), encoder._pads()
    paddings, inputs = [], []
    for name, size, stride in [("stem", *_STEM)] + [(block_name(i), s.size, s.stride) for i, s in enumerate(specs)]:
        padding = encoder._padding(table, name, (1, *sides, 1), size, stride)
        paddings.append(padding)
        inputs.append(sides)
        sides = tuple((n + sum(around) - size) // stride + 1 for n, around in zip(sides, padding))
    inputs, paddings = inputs[1:], paddings[1:]
    places = [
        encoder._place(spec.expanded, (images, *given, spec.inputs), spec.size, spec.stride, padding)
        for spec, given, padding in zip(specs, inputs, paddings)
    ]
    spec, place, padding = specs[index], places[index], paddings[index]
    is_last = index + 1 == len(specs)
    after = 1 if is_last else places[index + 1].columns
    options = encoder.dtype, encoder.depthwise, encoder.batch_norm_momentum, encoder.batch_norm_eps
    block = Block(spec, *options, place, encoder.kernels, parent=None)

    def forward(params, x, statistics, drop):
        x = jnp.transpose(x, (2, 0, 1, 3))
        variables = {"params": params, "batch_stats": statistics}
        y, updated = block.apply(variables, x, True, padding, drop, mutable=["batch_stats"])
        y = packed.repack(y, max(place.columns // spec.stride, 1), after)
        return jnp.transpose(y, (1, 2, 0, 3)), updated

    remat = encoder._remats()[spec.stage - 1]
    if remat != "none":
        forward = jax.checkpoint(forward, policy=jax.checkpoint_policies.save_only_these_names(*_POLICIES[remat]))

    def run(variables, x, gradient, key):
        drop = jnp.float32(encoder.drop_connect_rate), key
        y, back, updated = jax.vjp(
            lambda params, x: forward(params, x, variables["batch_stats"], drop), variables["params"], x, has_aux=True
        )
        y, gradient = jax.lax.optimization_barrier((y, gradient))  # the backward pass comes later
        return y, updated, back(gradient)

    def init(key):
        x = jnp.zeros((1, 2 * spec.size, 2 * spec.size, spec.inputs), encoder.dtype)
        return block.clone(place=Place(), kernels="xla").init(key, x, False, padding)

    def shape(sides, columns, channels):
        return jax.ShapeDtypeStruct((sides[0], sides[1] // columns, images, columns * channels), encoder.dtype)

    made = sides if is_last else inputs[index + 1]
    return LoneBlock(
        spec,
        run,
        jax.eval_shape(init, jax.random.key(0)),
        shape(inputs[index], place.columns, spec.inputs),
        shape(made, after, spec.outputs),
    )
