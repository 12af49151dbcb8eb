"""Insertion and deletion (Petsiuk, Das and Saenko 2018, RISE, arXiv:1806.07421, section 4.1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

BLUR = 5 / 224  # standard deviation of their blur, 5 pixels of 224
FILLS = ("black", "blur")


def curves(
    subject,
    pixels: Float[Array, "1 H W C"],
    direction: Float[Array, " D"],
    heat: Float[Array, "H W"],
    tissue: Bool[Array, "H W"],
    steps: int,
    blur: float = BLUR,
    fill: str = "black",
) -> Float[Array, "2 steps+1"]:
    """The score as the tissue appears on a blurred image (row 0) and goes from the image (row 1), hottest pixels first.

    What is outside of `tissue` stays as it is. At point k round(k / steps * pixels of tissue) are changed; among
    pixels of equal heat the upper comes first, then the left one.

    Args:
        blur: standard deviation, as a share of the shorter side.
        fill: what a deleted pixel becomes, one of FILLS.
    """
    order = jnp.argsort(jnp.where(tissue, -heat, jnp.inf).reshape(-1), stable=True)
    rank = jnp.zeros(heat.size, jnp.int32).at[order].set(jnp.arange(heat.size, dtype=jnp.int32)).reshape(heat.shape)
    blurred = blurred_image(pixels[0], blur * min(heat.shape))
    below = jnp.where(tissue[..., None], blurred, pixels[0])
    cover = blurred if fill == "blur" else jnp.full_like(pixels[0], subject.grey(0.0))
    count = tissue.sum()

    def point(step):
        changed = (rank < jnp.round(step / steps * count).astype(jnp.int32))[..., None]
        both = jnp.stack([jnp.where(changed, pixels[0], below), jnp.where(changed, cover, pixels[0])])
        return subject.scores(both, direction)

    return jax.lax.map(point, jnp.arange(steps + 1)).T


def blurred_image(image: Float[Array, "H W C"], deviation: float) -> Float[Array, "H W C"]:
    """Gaussian blur with a standard deviation in pixels; at the border the weights within are scaled to sum to 1."""

    def matrix(size):
        distance = jnp.arange(size)[:, None] - jnp.arange(size)
        weights = jnp.exp(-((distance / deviation) ** 2) / 2)
        return weights / weights.sum(axis=1, keepdims=True)

    rows, columns = (matrix(size) for size in image.shape[:2])
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision="highest")
