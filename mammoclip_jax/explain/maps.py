"""From a method to a map over the image."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mammoclip_jax.explain import function_of


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
    grid: Grid | None,
    raw: bool,
    options: Mapping[str, Any],
) -> Float[Array, "H W"]:
    """The map of one image, laid over it.

    Args:
        grid: where the cells of the method's map lie; None: they are the pixels.
        raw: whether the map is left as the method gives it; else what speaks against the direction is 0, and the
            largest value 1, unless all are 0.
    """
    heat = function_of(method, options)(subject, pixels, direction, stage, **options)
    heat = heat if raw else jax.nn.relu(heat)
    heat = heat if grid is None else over_image(heat, grid, pixels.shape[1:3])
    highest = heat.max()
    return heat if raw else heat / jnp.where(highest > 0, highest, 1.0)


def over_image(heat: Float[Array, "h w"], grid: Grid, size: tuple[int, int]) -> Float[Array, "H W"]:
    """Resampled linearly to the image, each cell at the place that it looks at."""
    # scale_and_translate puts the centre of the first cell at stride / 2 + translation.
    translation = jnp.array([grid.row, grid.column]) - grid.stride / 2
    return jax.image.scale_and_translate(
        heat, size, (0, 1), jnp.full(2, grid.stride, jnp.float32), translation, "linear", antialias=False
    )


def peak_of(heat: np.ndarray) -> tuple[float, float] | None:
    """(x, y) of the first maximum of a map, in continuous pixel coordinates; None for a flat map."""
    if heat.max() == heat.min():
        return None
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    return x + 0.5, y + 0.5
