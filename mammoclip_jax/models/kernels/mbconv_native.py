"""MBConv blocks by the C++ passes of `native/`, on a CPU: config.model.image.kernels="native".

For training with float32 maps, in stride-1 blocks with squeeze-excite of stages 2 to 6, where they are faster. All other
blocks stay as they are, and so does everything without batch statistics. Results are equal to rounding.
"""

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.native import passes

_STAGES = range(2, 7)


def check(encoder) -> None:
    """Raises UserError where an EfficientNet's other options do not go with these kernels."""
    wrong = {"dtype": encoder.dtype != jnp.float32, "rows": encoder.rows, "lanes": encoder.lanes}
    if names := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise UserError(
            f"EfficientNet's kernels='native' needs float32 maps of whole images in their usual layout: take "
            f"{', '.join(names)} out, or kernels='xla'."
        )


def fits(block, x, padding) -> bool:
    """Whether `wide_part` takes the block (mbconv.Block)."""
    del x
    spec, around = block.spec, ((block.spec.size // 2,) * 2,) * 2
    return (
        (spec.stage in _STAGES and spec.stride == 1 and spec.squeezed > 0 and spec.expanded != spec.inputs)
        and spec.expanded % passes.LANES == 0
        and (spec.size in passes.SIZES and padding == around)
    )


def wide_part(block, x, padding):
    """What the `mbconv.Block` projects of its input x [N H W C]; updates its first batch norms' statistics."""
    del padding  # `fits` knows it
    params = block.variables["params"]
    first, second, excite = params["expand_bn"], params["depthwise_bn"], params["se"]
    projected, moments = passes.block(
        x,
        passes.Params(
            params["expand"]["kernel"],
            *(first["scale"], first["bias"]),
            params["depthwise"]["kernel"],
            *(second["scale"], second["bias"]),
            *((excite[name]["kernel"], excite[name]["bias"]) for name in ("reduce", "expand")),
            params["project"]["kernel"],
        ),
        block.eps,
    )
    count = x.size // x.shape[-1]
    for name, (mean, var) in zip(("expand_bn", "depthwise_bn"), moments):
        old = block.variables["batch_stats"][name]
        new = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        block.put_variable(
            "batch_stats",
            name,
            {key: block.momentum * old[key] + (1 - block.momentum) * new[key] for key in ("mean", "var")},
        )
    return checkpoint_name(projected, "conv")
