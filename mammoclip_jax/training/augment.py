"""Stored pixels -> what the image encoder sees, on the device: flips, affine, intensity, normalisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Shaped


class Preprocess(NamedTuple):
    """How pixels become network input (`config.image`), and how they are varied in training (`config.augment`).

    Ranges are half-widths: rotate in degrees, translate as a share of height and width, shear in degrees;
    scale is (low, high); contrast and brightness vary the picture by up to that share of its range.
    Mammo-CLIP's elastic warp (displacements below half a pixel) has no effect and is left out.
    """

    mean: float
    std: float
    channels: int
    intensity: str  # "minmax": each image stretched to [0, 1], as Mammo-CLIP; "range": by dtype
    affine_probability: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0


def preprocess_options(config) -> Preprocess:
    """`config.image` and `config.augment` as one named tuple."""
    fields = dict(config.image) | dict(config.augment)
    return Preprocess(**fields | {"scale": tuple(fields["scale"])})


class Draws(NamedTuple):
    """What varies the N images of a batch: drawn at once, so that it does not depend on micro-batches."""

    flip_horizontal: Bool[Array, " N"]
    flip_vertical: Bool[Array, " N"]
    matrix: Float[Array, "N 2 3"]  # see `random_affine`
    gain: Float[Array, " N"]
    lift: Float[Array, " N"]


def draw(batch, key, options: Preprocess) -> Draws:
    """For the images of a `Batch`, breast by breast; flips are those that the batch says."""
    breasts, views, height, width = batch["image"].shape
    n = breasts * views
    affine_key, intensity_key = jax.random.split(key)
    gain, lift = jax.random.uniform(intensity_key, (2, n), minval=-1.0)
    flips = (jnp.repeat(batch[f"flip_{axis}"], views) for axis in ("horizontal", "vertical"))
    return Draws(
        *flips,
        random_affine(affine_key, (n, height, width), options),
        options.contrast * gain,
        options.brightness * lift,
    )


def train_images(image: Shaped[Array, "N H W"], draws: Draws, options: Preprocess) -> Float[Array, "N H W C"]:
    """Flipped, then varied as drawn, then normalised."""
    image = to_unit(image)
    image = jnp.where(draws.flip_horizontal[:, None, None], image[..., ::-1], image)
    image = jnp.where(draws.flip_vertical[:, None, None], image[:, ::-1], image)
    if options.affine_probability > 0:
        image = jax.vmap(warp)(image, draws.matrix)
    if options.contrast or options.brightness:
        gain, lift = draws.gain[:, None, None], draws.lift[:, None, None]
        image = jnp.clip(image * (1 + gain) + lift * (image > 0), 0, 1)
    return normalise(image, options)


def boxes(
    boxes: Float[Array, "N M 4"], draws: Draws, size: tuple[int, int], affine: bool
) -> tuple[Float[Array, "N M 4"], Bool[Array, "N M"]]:
    """Boxes (left, top, right, bottom) where `train_images` moves them, cut to the image; and which are still there.

    A turned box becomes the upright one around it. One of which less than a quarter is left in the image is gone.
    """
    height, width = size
    left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
    horizontal, vertical = draws.flip_horizontal[:, None], draws.flip_vertical[:, None]
    left, right = jnp.where(horizontal, width - right, left), jnp.where(horizontal, width - left, right)
    top, bottom = jnp.where(vertical, height - bottom, top), jnp.where(vertical, height - top, bottom)
    if affine:
        # `matrix` says where a pixel comes from: boxes go the other way. Pixel i covers i to i + 1.
        inverse = jnp.linalg.inv(draws.matrix[:, :, :2])
        rows = jnp.stack([top, top, bottom, bottom], -1) - height / 2 - draws.matrix[:, None, None, 0, 2]
        columns = jnp.stack([left, right, left, right], -1) - width / 2 - draws.matrix[:, None, None, 1, 2]
        new_rows = inverse[:, 0, 0, None, None] * rows + inverse[:, 0, 1, None, None] * columns + height / 2
        new_columns = inverse[:, 1, 0, None, None] * rows + inverse[:, 1, 1, None, None] * columns + width / 2
        left, right = new_columns.min(-1), new_columns.max(-1)
        top, bottom = new_rows.min(-1), new_rows.max(-1)
    cut = jnp.stack(
        [jnp.clip(left, 0, width), jnp.clip(top, 0, height), jnp.clip(right, 0, width), jnp.clip(bottom, 0, height)], -1
    )
    area, kept = (right - left) * (bottom - top), (cut[..., 2] - cut[..., 0]) * (cut[..., 3] - cut[..., 1])
    return cut, kept > 0.25 * area


def with_moved_boxes(batch, draws: Draws, options: Preprocess):
    """The `Batch` with its boxes where `train_images` moves them; the class of one that is gone is -1."""
    shape = batch["boxes"].shape
    moved, there = boxes(
        batch["boxes"].reshape(-1, *shape[2:]), draws, batch["image"].shape[-2:], options.affine_probability > 0
    )
    classes = jnp.where(there.reshape(shape[:-1]), batch["box_classes"], -1)
    return batch | {"boxes": moved.reshape(shape), "box_classes": classes}


def eval_images(image: Shaped[Array, "N H W"], options: Preprocess) -> Float[Array, "N H W C"]:
    return normalise(to_unit(image), options)


def resized(image: Float[Array, "N H W C"], size: tuple[int, int]) -> Float[Array, "N h w C"]:
    """Stretched to (height, width), with antialiasing; the image itself where that is its size."""
    if image.shape[1:3] == tuple(size):
        return image
    return jax.image.resize(image, (len(image), *size, image.shape[-1]), "linear")


def to_unit(image):
    """uint8 or uint16 -> float32 in [0, 1]."""
    return image.astype(jnp.float32) / jnp.iinfo(image.dtype).max


def normalise(image: Float[Array, "N H W"], options: Preprocess) -> Float[Array, "N H W C"]:
    """(x - mean) / std on `channels` equal channels; a constant image under "minmax" gives zeros, never NaN."""
    if options.intensity == "minmax":
        low = image.min(axis=(-2, -1), keepdims=True)
        span = image.max(axis=(-2, -1), keepdims=True) - low
        image = (image - low) / jnp.where(span > 0, span, 1.0)
    image = (image - options.mean) / options.std
    return jnp.broadcast_to(image[..., None], (*image.shape, options.channels))


def random_affine(key, shape, options: Preprocess) -> Float[Array, "N 2 3"]:
    """Maps output pixels (row, column, 1), measured from the centre, to input pixels; identity for the unlucky ones."""
    n, height, width = shape
    uniform = jax.random.uniform(key, (6, n), minval=-1.0)
    angle = jnp.deg2rad(options.rotate) * uniform[0]
    shear = jnp.tan(jnp.deg2rad(options.shear) * uniform[1])
    low, high = options.scale
    scale = low + (high - low) * (uniform[2] + 1) / 2
    shift = jnp.stack([uniform[3] * options.translate * height, uniform[4] * options.translate * width], -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    sheared = jnp.stack([jnp.stack([jnp.ones(n), shear], -1), jnp.stack([jnp.zeros(n), jnp.ones(n)], -1)], -2)
    linear = jnp.matmul(rotation, sheared, precision="highest") / scale[:, None, None]
    matrix = jnp.concatenate([linear, shift[..., None]], -1)
    chosen = (uniform[5] + 1) / 2 < options.affine_probability
    return jnp.where(chosen[:, None, None], matrix, jnp.eye(2, 3))


def warp(image: Float[Array, "H W"], matrix: Float[Array, "2 3"]) -> Float[Array, "H W"]:
    """Bilinear resampling; what lies outside is 0, the air around a breast."""
    height, width = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    # By elements: as a product of matrices a TPU would take coordinates in bfloat16, four pixels apart at 1,000.
    source = [matrix[i, 0] * rows + matrix[i, 1] * columns + matrix[i, 2] + centre[i] for i in (0, 1)]
    return map_coordinates(image, source, order=1, mode="constant", cval=0.0)
