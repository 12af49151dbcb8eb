"""How large the model of a config is: parameters, those that are trained, and the FLOPs of a forward pass."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from mammoclip_jax import command
from mammoclip_jax.aot import flops
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.training.optimizer import frozen_parameters

MILLION, GIGA = 1e6, 1e9
COLUMNS = (
    "config",
    "image",
    "total M",
    "trained M",
    "image encoder M",
    "text encoder M",
    "GFLOP an image",
    "GFLOP a text",
)


def sizes(item: str, vocab_size: int) -> dict[str, str | float]:
    """A row of COLUMNS for CONFIG[:ARGUMENT]=HEIGHTxWIDTH, a config of a dual encoder and the size of its images.

    Nothing is computed: shapes alone are looked at. "trained" are the parameters that some step of the run changes:
    neither those of frozen towers and of kernels with adapters, nor what config.train.frozen matches. FLOPs are those of
    the products (aot/flops.py) for one image and for one text of config.data.text_length tokens.

    Args:
        vocab_size: of the tokenizer; a text encoder may have rows for more.

    Raises:
        UserError: it is written otherwise, there is no such file, or the config is of another task.
    """
    match = re.fullmatch(r"(?P<path>[^:=]+)(:(?P<argument>[^=]*))?=(?P<height>\d+)x(?P<width>\d+)", item)
    if not match or not Path(match["path"]).is_file():
        raise UserError(f"--parameters={item}: write CONFIG=HEIGHTxWIDTH, as configs/mammoclip_b5.py=1520x912.")
    config = command.load_config(match["path"] if match["argument"] is None else f"{match['path']}:{match['argument']}")
    if config.task.kind != "pretrain":
        raise UserError(f"--parameters={item}: its task is {config.task.kind}; only dual encoders are counted.")
    height, width = int(match["height"]), int(match["width"])
    preprocessing = {"height": height, "width": width, "bits": 8}
    trainer = make_trainer(config, vocab_size, preprocessing, make_mesh({"data": 1}, jax.devices()[:1]))
    model, params = flops.without_cells(trainer.model), trainer.state.params
    variables = {"params": params, "batch_stats": trainer.state.batch_stats}
    frozen = jax.tree.leaves(frozen_parameters(config.train, params, config.model.frozen))
    counts = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    image = jax.ShapeDtypeStruct((1, height, width, config.image.channels), jnp.float32)
    text = tuple(jax.ShapeDtypeStruct((1, config.data.text_length), dtype) for dtype in (jnp.int32, bool))

    def forward(method, *inputs):
        return flops.model_flops(lambda v, *x: model.apply(v, *x, method=method), variables, *inputs) / GIGA

    def size_of(part):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[part])) / MILLION

    values = (
        config.name,
        f"{height} x {width}",
        sum(counts) / MILLION,
        sum(count for count, still in zip(counts, frozen, strict=True) if not still) / MILLION,
        size_of("image_encoder"),
        size_of("text_encoder"),
        forward("encode_image", image),
        forward("encode_text", *text),
    )
    return dict(zip(COLUMNS, values, strict=True))


def markdown(rows: list[dict[str, str | float]]) -> str:
    """A table of rows as `sizes` gives them."""
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2))]
    lines += [[f"{value:,.2f}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
