"""Swin Transformer as transformers names it in its files; its modules in memory have other names since version 5.

Ours is named after it. The shapes say all but the epsilon of the norms: the table of relative positions has a column
for each head and (2 window - 1)^2 rows.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.swin import VARIANTS, Swin, Variant
from mammoclip_jax.weights.names.shapes import Shapes, check_config, depths, shape_of
from mammoclip_jax.weights.naming import Leaf, Naming

_WHAT = "Swin of transformers"
_PROJECTION = "embeddings/patch_embeddings/projection/kernel"
_TABLE = "encoder.layers.{}.blocks.0.attention.self.relative_position_bias_table"
# What the Swin here always has; those without it are refused, as are SwinV2 and Donut's Swin by their type.
_FIXED = {
    "model_type": "swin",
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
}


def _leaf(path: str) -> Leaf:
    """Where our array is: dots for slashes, list numbers apart from the name."""
    key = re.sub(r"_(\d+)/", r".\1/", path).replace("/", ".")
    kind = "same" if not path.endswith("/kernel") else "conv" if path == _PROJECTION else "dense"
    return Leaf(re.sub(r"\.(kernel|scale)$", ".weight", key), kind)


def _options(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    """The published variant of these shapes, or their numbers; what else a config.json says must fit them.

    Raises:
        UserError: the file holds no Swin, one with other patches or windows, or the config is of another network.
    """
    if shape_of(shapes, HUGGINGFACE.stem, _WHAT)[2:] != (4, 4):
        raise UserError(
            f"{HUGGINGFACE.stem} has the shape {shapes[HUGGINGFACE.stem]}: the Swin here has patches of "
            "4 x 4 pixels, [width, channels, 4, 4]."
        )
    counts = depths(shapes, r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.")
    tables = [shape_of(shapes, _TABLE.format(i), _WHAT) for i in range(max(len(counts), 1))]
    network = Variant(shapes[HUGGINGFACE.stem][0], counts, tuple(table[-1] for table in tables))
    window = _window(tables[0][0])
    config = config or {}
    check_config(
        config,
        _FIXED
        | {
            "embed_dim": network.width,
            "depths": list(network.depths),
            "num_heads": list(network.heads),
            "window_size": window,
        },
    )
    options = next(({"variant": name} for name, variant in VARIANTS.items() if variant == network), network._asdict())
    values = {"window": window, "layer_norm_eps": config.get("layer_norm_eps", Swin.layer_norm_eps)}
    return options | {key: value for key, value in values.items() if value != getattr(Swin, key)}


def _window(rows: int) -> int:
    """Side of the windows whose relative positions are `rows`."""
    side = math.isqrt(rows)
    if side**2 != rows or side % 2 == 0:
        raise UserError(
            f"{_TABLE.format(0)} has {rows} rows; a square window of w x w tokens has (2 w - 1)^2, as in 169 of 7 x 7."
        )
    return (side + 1) // 2


# The index of relative positions follows from the window: files from before version 5 have it, later ones do not.
HUGGINGFACE = Naming(
    encoder="swin",
    leaf=_leaf,
    options=_options,
    signs=("embeddings.patch_embeddings.projection.weight", _TABLE.format(0)),
    stem="embeddings.patch_embeddings.projection.weight",
    unused=r".*\.relative_position_index|embeddings\.mask_token|(pooler|classifier)\..*",
)
