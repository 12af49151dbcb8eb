"""Softmax attention whose memory does not grow with the square of the number of tokens."""

import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

ATTENTIONS = ("auto", "plain", "chunked", "flash")
CHUNK = 256  # queries at a time, at most
BLOCK = 768  # queries, and keys, that are on the chip together in the TPU kernel, at most
_LANES = 128
PLAIN_LENGTH = 512  # up to here "auto" makes all weights at once
_RECORDED = "queries_and_keys"


def attention(
    query: Float[Array, "N heads Q d"],
    key: Float[Array, "N heads K d"],
    value: Float[Array, "N heads K d"],
    how: str = "auto",
    chunk: int = CHUNK,
) -> Float[Array, "N heads Q d"]:
    """softmax(q k^T / sqrt(d)) v in each head; products in the input's dtype, softmax in at least float32.

    Args:
        how: "plain" makes all weights [N heads Q K] at once and keeps them for the backward pass; "chunked" goes
            through the queries `chunk` at a time and computes the weights again in the backward pass (Rabe and Staats
            2021, arXiv:2112.05682, over queries alone), so that [N heads chunk K] is the most that is ever held;
            "flash" never writes weights to memory where the platform has a kernel for that, on a TPU (`flash`) and, of
            what cuDNN takes (`cudnn_takes`), on an NVIDIA GPU (`fused`), and is "chunked" elsewhere; "auto" above 512
            queries is "flash" on a GPU and "chunked" elsewhere.
        chunk: the most queries at a time; they are shared out evenly, so that few rows are filled up.
    """
    if how == "plain" or (how == "auto" and query.shape[2] <= PLAIN_LENGTH):
        return _plain(query, key, value)
    chunked = functools.partial(_chunked, chunk=chunk)
    kernels = kernels_for(how, query, key)
    return (
        lax.platform_dependent(query, key, value, default=chunked, **kernels) if kernels else chunked(query, key, value)
    )


def kernels_for(how: str, query, key) -> dict[str, Callable]:
    """The one place where a platform gets its kernel: {platform: attention without weights in memory}."""
    kernels = {}
    if how == "flash":
        kernels["tpu"] = flash
    if how in ("flash", "auto") and cudnn_takes(query, key):
        kernels["cuda"] = functools.partial(_on_each_device, fused)
    return kernels


def cudnn_takes(query, key) -> bool:
    """Whether this process has an NVIDIA GPU (compute capability 8.0 or newer) whose cuDNN takes such arrays.

    bfloat16 or float16, and at most 128 numbers a head. Asked when a program is traced, since jax looks for cuDNN
    then: a program for a GPU that is made where none is (an export) has chunks.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16) or key.dtype != query.dtype or query.shape[-1] > 128:
        return False
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", None)  # AMD's is no number
    return bool(re.fullmatch(r"\d+\.\d+", str(capability))) and float(capability) >= 8.0


def fused(
    query: Float[Array, "N heads Q d"],
    key: Float[Array, "N heads K d"],
    value: Float[Array, "N heads K d"],
    implementation: str = "cudnn",
) -> Float[Array, "N heads Q d"]:
    """`attention` by `jax.nn.dot_product_attention`: with "cudnn" its kernel, in which weights stay on the chip.

    cuDNN wants a multiple of 8 numbers a head: zeros are added, which change no product. It takes any lengths, so that
    nothing is masked.
    """
    d = query.shape[-1]

    def by_token(x):
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, 0), (0, -d % 8)))

    arrays = map(by_token, (query, key, value))
    out = jax.nn.dot_product_attention(*arrays, scale=d**-0.5, implementation=implementation)
    return jnp.swapaxes(out[..., :d], 1, 2)


def flash(
    query: Float[Array, "N heads Q d"], key: Float[Array, "N heads K d"], value: Float[Array, "N heads K d"]
) -> Float[Array, "N heads Q d"]:
    """`attention` by jax's Pallas kernel for TPUs (Dao et al. 2022, arXiv:2205.14135): weights stay on the chip.

    Lengths are filled up to whole blocks; what was filled up attends to itself alone. The compiler cannot split a
    kernel over devices, so that under `jax.set_mesh` each runs it on its rows N.
    """
    return _on_each_device(_kernel, query, key, value)


def _on_each_device(kernel, query, key, value):
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(mesh.axis_names)
    while query.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    if mesh.empty or mesh.size == 1:
        return kernel(query, key, value)
    split = PartitionSpec(axes)
    return jax.shard_map(kernel, in_specs=split, out_specs=split, check_vma=False)(query, key, value)


def _kernel(query, key, value):
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    (queries, block_q), (keys, block_k) = (_whole_blocks(x.shape[2]) for x in (query, key))
    rows = query.shape[0]

    def filled(x, length):
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))

    def real(length, whole):
        return jnp.broadcast_to(jnp.arange(whole) < length, (rows, whole)).astype(jnp.int32)

    blocks = pallas.BlockSizes(
        block_q,
        block_k,
        block_k,
        1,
        block_q_major_dkv=block_q,
        block_k_major_dkv=block_k,
        block_k_dkv=block_k,
        block_q_dkv=block_q,
        block_k_major_dq=block_k,
        block_k_dq=block_k,
        block_q_dq=block_q,
    )
    segments = pallas.SegmentIds(real(query.shape[2], queries), real(key.shape[2], keys))
    out = pallas.flash_attention(
        filled(query, queries),
        filled(key, keys),
        filled(value, keys),
        None,
        segments,
        sm_scale=query.shape[-1] ** -0.5,
        block_sizes=blocks,
    )
    return out[:, :, : query.shape[2]]


def _whole_blocks(length: int) -> tuple[int, int]:
    """(length filled up, size of a block): equal blocks, of whole lanes, as few as BLOCK allows."""
    parts = -(-length // BLOCK)
    size = -(-length // (parts * _LANES)) * _LANES
    return parts * size, size


def _chunked(query, key, value, chunk):
    length = query.shape[2]
    parts = -(-length // chunk)
    size = -(-length // parts)
    filled = jnp.pad(query, ((0, 0), (0, 0), (0, parts * size - length), (0, 0)))
    stacked = jnp.moveaxis(filled.reshape(*query.shape[:2], parts, size, -1), 2, 0)
    out = lax.map(jax.checkpoint(lambda part: _plain(part, key, value), prevent_cse=False), stacked)
    return jnp.moveaxis(out, 0, 2).reshape(filled.shape)[:, :, :length]


def weights(query: Float[Array, "N heads Q d"], key: Float[Array, "N heads K d"]) -> Float[Array, "N heads Q K"]:
    """softmax(q k^T / sqrt(d)) in each head, in at least float32: how much each query takes from each key."""
    scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / query.shape[-1] ** 0.5
    return jax.nn.softmax(scores, axis=-1)


def record(module: nn.Module, query: Float[Array, "N heads L d"], key: Float[Array, "N heads L d"]) -> None:
    """Hands queries and keys to whoever applies the model with `mutable=["intermediates"]`; does nothing otherwise."""
    module.sow("intermediates", _RECORDED, (query, key))


def recorded(intermediates) -> list[tuple[Float[Array, "N heads L d"], Float[Array, "N heads L d"]]]:
    """Queries and keys of every layer that was recorded, by the numbers in the layers' names."""
    layers = {}
    for path, array in jax.tree_util.tree_leaves_with_path(intermediates):
        names = "/".join(str(getattr(part, "key", "")) for part in path)
        if _RECORDED in names:
            layers.setdefault(tuple(map(int, re.findall(r"\d+", names))), []).append(array)
    return [tuple(layers[layer]) for layer in sorted(layers)]


def _plain(query, key, value):
    return jnp.einsum("nhqk,nhkd->nhqd", weights(query, key).astype(value.dtype), value)
