"""Single blocks of a config's EfficientNet compiled for one device: where the time and the traffic of a step are."""

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.aot import cycles, figures, hlo, traffic
from mammoclip_jax.aot.topology import Topology
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.lone_block import lone_block
from mammoclip_jax.training.mesh import make_mesh

COLUMNS = ("block", "stage", "kernel", "stride", "kernels", "ms", "hbm_gib_per_image", "temporaries_gib")


def compile_block(config, index: int, images: int, height: int, width: int, target: Topology) -> dict:
    """A row of COLUMNS for one block, forward and backward (models/lone_block.py), with so many images on one device.

    `ms` is the sum of the compiler's cycles (aot/cycles.py), None where it has none; the traffic is by our rules
    (aot/traffic.py). Both include copies where neighbours have their maps in other cells.

    Raises:
        UserError: the config's image encoder is no EfficientNet, or has no such block.
    """
    encoder = models.bare_image_encoder(config.model).image_encoder
    if not isinstance(encoder, EfficientNet):
        raise UserError(f"--block={index}: the image encoder is {config.model.image.name}, not efficientnet.")
    block = lone_block(encoder, index, images, height, width)
    mesh = make_mesh({"data": 1}, target.devices[:1])
    given = NamedSharding(mesh, PartitionSpec())
    rows = Format(Layout(major_to_minor=(0, 1, 2, 3)), given)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        run = jax.jit(block.run, in_shardings=(given, rows, rows, given), out_shardings=(rows, given, (given, rows)))
        compiled = run.lower(block.variables, block.x, block.gradient, key).compile()
    program = hlo.parse(compiled.as_text())
    seconds = figures.estimated_seconds(target.devices[0].device_kind, cycles.total(program))
    gib = 2**30
    values = (
        index,
        block.spec.stage,
        block.spec.size,
        block.spec.stride,
        encoder.kernels,
        None if seconds is None else round(1e3 * seconds, 2),
        round(traffic.total(traffic.costs(program)).hbm / images / gib, 3),
        round(compiled.memory_analysis().temp_size_in_bytes / gib, 2),
    )
    return dict(zip(COLUMNS, values))


def text(rows: list[dict]) -> str:
    """Rows of COLUMNS as a table in Markdown."""
    cells = [COLUMNS, ["---"] * len(COLUMNS), *(["" if v is None else str(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
