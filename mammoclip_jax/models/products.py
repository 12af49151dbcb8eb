"""Products of maps or states with a kernel, in the precision that `config.model.matmul` names.

What a float32 product means differs: a TPU rounds both operands to bfloat16 and sums in float32, a CPU rounds nothing.
jax's own setting (`jax.default_matmul_precision`, which `training.distributed.configure` sets) raises it, and on a CPU
cannot lower it. So "bfloat16" is written out here, for all platforms: operands in bfloat16, sums in float32, in the
backward pass too. A CPU with AVX-512 BF16 or AMX then multiplies twice as fast or more.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

NARROW = "bfloat16"  # of jax_default_matmul_precision


def product(x: Float[Array, "... in"], kernel: Float[Array, "in out"]) -> Float[Array, "... out"]:
    """x @ kernel; differentiable in reverse mode, and once where the operands are rounded."""
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def rounds() -> bool:
    """Whether float32 operands are rounded to bfloat16 in the program that is being traced."""
    return jax.config.jax_default_matmul_precision == NARROW


def dot(x: Float[Array, "... in"], kernel: Float[Array, "in out"], axis: int = 0) -> Float[Array, "... out"]:
    """x @ kernel of operands as they are, summed and returned in float32; `axis` 1 takes the kernel's transpose."""
    dimensions = (((1,), (axis,)), ((), ()))
    flat = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, dimensions, preferred_element_type=jnp.float32)
    return flat.reshape(*x.shape[:-1], kernel.shape[1 - axis])


def kernel_gradient(x: Float[Array, "... in"], gradient: Float[Array, "... out"]) -> Float[Array, "in out"]:
    """The gradient of `dot`'s kernel; the narrower one of two 16-bit operands is transposed in memory before.

    XLA's CPU backend multiplies 16 bits only along rows of the first operand, and makes float32 of all others. Without
    the constraint a transposition is another view of the same memory, and one of the result gets into the product.
    """
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.dtype == jnp.float32:
        return lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    if x.shape[1] <= gradient.shape[1]:
        return dot(_in_rows(x.T), gradient)
    return _in_rows(dot(_in_rows(gradient.T), x)).T


@jax.jit
def _in_rows(x):
    """x, row after row in memory where the program is for a CPU."""
    return lax.platform_dependent(x, cpu=lambda x: with_layout_constraint(x, Layout((0, 1))), default=lambda x: x)


def _product(x, kernel, precision=None):
    if rounds() and x.dtype == kernel.dtype == jnp.float32:
        return _rounded(x, kernel)
    return jnp.dot(x, kernel, precision=precision)


def _dot_general(x, kernel, dimensions, precision=None, **options):
    """For `nn.Dense`: contracts the last axis of x [... in] with the first of kernel [in, out]."""
    assert dimensions == (((x.ndim - 1,), (0,)), ((), ())) and not options
    return _product(x.reshape(-1, x.shape[-1]), kernel, precision).reshape(*x.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=_dot_general)  # a linear layer whose product is one of these


@jax.custom_vjp
def _rounded(x: Float[Array, "M in"], kernel: Float[Array, "in out"]) -> Float[Array, "M out"]:
    return _forward(x, kernel)[0]


def _forward(x, kernel):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return dot(x, kernel), (x, kernel)


def _backward(saved, gradient):
    x, kernel = saved
    gradient = gradient.astype(jnp.bfloat16)
    return dot(gradient, kernel, axis=1), kernel_gradient(x, gradient)


_rounded.defvjp(_forward, _backward)
