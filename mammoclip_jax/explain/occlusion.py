"""Occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError


def occlusion(
    subject, pixels, direction, stage: str, *, window: int = 128, stride: int = 64, fill: float = 0.0, chunk: int = 8
) -> Float[Array, "H W"]:
    """By how much the score falls when a square is covered: for each pixel the mean over the squares that cover it.

    Args:
        window: side of the square in pixels; at most the image's own sides.
        stride: pixels from one square to the next; the last ones end at the border.
        fill: grey value of the cover, from 0, the black of the background, to 1.
        chunk: covered images at a time; no result depends on it.

    Raises:
        UserError: the squares would leave gaps.
    """
    if not 1 <= stride <= window:
        raise UserError(
            f"occlusion: stride={stride} must be at least 1 and at most window={window}, or some pixels "
            "are never covered."
        )
    rows, columns = (covers(size, window, stride) for size in pixels.shape[1:3])
    squares = np.stack(np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"), -1).reshape(-1, 2)
    parts = -(-len(squares) // chunk)
    filled = np.pad(squares, ((0, parts * chunk - len(squares)), (0, 0))).reshape(parts, chunk, 2)
    on_rows, on_columns = jnp.asarray(rows), jnp.asarray(columns)

    def scores_of(part):
        covered = on_rows[part[:, 0], :, None] & on_columns[part[:, 1], None, :]
        return subject.scores(jnp.where(covered[..., None], subject.grey(fill), pixels), direction)

    scores = jax.lax.map(scores_of, jnp.asarray(filled)).reshape(-1)[: len(squares)]
    drops = (subject.scores(pixels, direction)[0] - scores).reshape(len(rows), len(columns))
    spread = jnp.einsum("rh,rc,cw->hw", rows.astype(np.float32), drops, columns.astype(np.float32), precision="highest")
    return spread / (rows.sum(0)[:, None] * columns.sum(0)[None])


def covers(size: int, window: int, stride: int) -> np.ndarray:
    """bool [squares, size]: which pixels of a side each of the squares along it covers."""
    window = min(window, size)
    first = np.minimum(np.arange(0, size - window + stride, stride), size - window)
    places = np.arange(size)
    return (places >= first[:, None]) & (places < first[:, None] + window)
