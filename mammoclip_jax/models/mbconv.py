"""Who computes an EfficientNet block, but for its last batch norm and shortcut: `config.model.image.kernels`.

"xla" is the layers of `layers.py`, and "auto" the same; "native" the C++ passes of `native/`, on a CPU, for training with
float32 maps, where they are faster: in stride-1 blocks with squeeze-excite of stages 2 to 6. All other blocks stay as
they are, and so does everything without batch statistics. Results are equal to rounding.
"""

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.native import passes
from mammoclip_jax.names import check_name

KERNELS = ("auto", "xla", "native")
_STAGES = range(2, 7)


def check(encoder) -> None:
    """Raises UserError where an encoder's `kernels` is no name, or its other options do not go with it."""
    check_name(encoder.kernels, KERNELS, "EfficientNet's kernels")
    if encoder.kernels != "native":
        return
    wrong = {"dtype": encoder.dtype != jnp.float32, "rows": encoder.rows, "lanes": encoder.lanes}
    if names := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise UserError(
            f"EfficientNet's kernels='native' needs float32 maps of whole images in their usual layout: take "
            f"{', '.join(names)} out, or kernels='xla'."
        )


def fits(kernels: str, spec, padding, train: bool) -> bool:
    """Whether `project` takes the block of `spec` (efficientnet.BlockSpec)."""
    around = ((spec.size // 2,) * 2,) * 2
    return (
        kernels == "native"
        and train
        and (spec.stage in _STAGES and spec.stride == 1 and spec.squeezed > 0 and spec.expanded != spec.inputs)
        and (spec.expanded % passes.LANES == 0 and spec.size in passes.SIZES and padding == around)
    )


def project(block, x):
    """What the `efficientnet.Block` projects of its input x [N H W C]; updates its first batch norms' statistics."""
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
