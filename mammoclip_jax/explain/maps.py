"""From a method to a map over the image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mammoclip_jax.explain import SUM, function_of


class Subject(NamedTuple):
    """A model with its weights, as the methods see it."""

    encode: Callable  # (pixels [N H W C], offsets {stage: [N h w c]}) -> (vectors [N D], {stage: [N h w c]})
    project: Callable  # features [... c] of the pooled stage -> vectors [... D]
    patches: Callable  # (pixels, stage) -> (unit vectors [N h w D] by the local head there, which count [N h w])
    attention: Callable  # pixels -> [(queries, keys)], each [N heads L d], of every layer
    tokens: Callable | None  # number of patches -> the share [L] of each token in the pooled vector
    grey: Callable  # grey value from 0 to 1 -> the value that stands for it in `pixels`
    channel_scores: Callable | None = None  # (features [h w C], stage, direction [A]) -> scores [C] of the channels

    def scores(self, pixels: Float[Array, "N H W C"], direction: Float[Array, " D"]) -> Float[Array, " N"]:
        """What the maps explain: a cosine, a difference of cosines, or a logit."""
        return jnp.dot(self.encode(pixels)[0], direction, precision="highest")


class Grid(NamedTuple):
    """Cell (i, j) of a map is centred on the pixel coordinates (stride i + row, stride j + column)."""

    stride: int
    row: float
    column: float


def saliency_map(
    subject: Subject,
    pixels: Float[Array, "1 H W C"],
    direction: Float[Array, " D"],
    method: str,
    stage: str,
    grids: Sequence[Grid],
    raw: bool,
    options: Mapping[str, Any],
) -> Float[Array, "H W"]:
    """The map of one image, laid over it.

    Args:
        stage: that the method looks at, or several with `explain.SUM` between, whose maps are added up.
        grids: where the cells of the map lie, of each stage; (): they are the pixels.
        raw: whether the map is left as the method gives it; else what speaks against the direction is 0, and the
            largest value 1, unless all are 0.
    """
    function, names = function_of(method, options), stage.split(SUM)
    maps = [function(subject, pixels, direction, name, **options) for name in names]
    signed = raw or len(maps) > 1  # of several it is the sum that is cut at 0
    maps = maps if signed else [jax.nn.relu(maps[0])]
    if grids:
        size = pixels.shape[1:3]
        maps = [over_image(heat, grid, size, signed) for heat, grid in zip(maps, grids, strict=True)]
    heat = sum(maps[1:], start=maps[0])
    heat = heat if raw else jax.nn.relu(heat)
    highest = heat.max()
    return heat if raw else heat / jnp.where(highest > 0, highest, 1.0)


def over_image(
    heat: Float[Array, "h w"], grid: Grid, size: tuple[int, int], signed: bool = False
) -> Float[Array, "H W"]:
    """Resampled linearly to the image, each cell at the place that it looks at.

    Args:
        signed: whether the outermost cells go on to the border. Else what is more than half a cell from all is 0, which in
            a map that may be negative everywhere would be its maximum.
    """
    row, column = grid.row, grid.column
    if signed:
        heat, row, column = jnp.pad(heat, 1, mode="edge"), row - grid.stride, column - grid.stride
    # scale_and_translate puts the centre of the first cell at stride / 2 + translation.
    translation = jnp.array([row, column]) - grid.stride / 2
    return jax.image.scale_and_translate(
        heat, size, (0, 1), jnp.full(2, grid.stride, jnp.float32), translation, "linear", antialias=False
    )


def peak_of(heat: np.ndarray) -> tuple[float, float] | None:
    """(x, y) of the first maximum of a map, in continuous pixel coordinates; None for a flat map."""
    if heat.max() == heat.min():
        return None
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    return x + 0.5, y + 0.5
