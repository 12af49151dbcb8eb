"""Stored pixels -> what the image encoder sees, on the device: flips, affine, crop, intensity, blur, normalisation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Shaped

from mammoclip_jax.errors import UserError

BLUR = 7  # taps of the Gaussian blur, along each axis


class Preprocess(NamedTuple):
    """How pixels become network input (`config.image`), and how they are varied in training (`config.augment`).

    Ranges are half-widths: rotate in degrees, translate as a share of height and width, shear in degrees;
    scale is (low, high); contrast and brightness vary the picture by up to that share of its range.
    MaMA (Du et al., arXiv 2409.18119) crops to .1 to 1 of the area, varies the contrast by .8 with probability .8, and
    blurs with probability .4, sigma .1 to 2 pixels.
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
    jitter_probability: float = 1.0  # of contrast and brightness, together
    crop: tuple[float, float] = (1.0, 1.0)  # share of the area that is kept: (low, high)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of its shape to the image's, which it is stretched to
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels

    @property
    def crops(self) -> bool:
        """Whether a crop may be less than the image."""
        return self.crop[0] < 1


def preprocess_options(config) -> Preprocess:
    """`config.image` and `config.augment` as one named tuple.

    Raises:
        UserError: a range or a probability that cannot be.
    """
    fields = dict(config.image) | dict(config.augment)
    ranges = {name: tuple(map(float, fields[name])) for name in ("scale", "crop", "crop_ratio", "blur_sigma")}
    for name, highest in (("crop", 1.0), ("crop_ratio", float("inf")), ("blur_sigma", float("inf"))):
        if len(ranges[name]) != 2 or not 0 < ranges[name][0] <= ranges[name][1] <= highest:
            raise UserError(
                f"config.augment.{name}={ranges[name]} must be (low, high), above 0"
                f"{' and at most 1' if highest == 1 else ''}."
            )
    for name in ("affine_probability", "jitter_probability", "blur"):
        if not 0 <= fields[name] <= 1:
            raise UserError(f"config.augment.{name}={fields[name]} is a probability: 0 to 1.")
    return Preprocess(**fields | ranges)


class Draws(NamedTuple):
    """What varies the N images of a batch: drawn at once, so that it does not depend on micro-batches."""

    flip_horizontal: Bool[Array, " N"]
    flip_vertical: Bool[Array, " N"]
    matrix: Float[Array, "N 2 3"]  # see `random_affine`
    gain: Float[Array, " N"]
    lift: Float[Array, " N"]
    crop: Float[Array, "N 4"] | None = None  # left, top, right, bottom, after the affine map; see `random_crop`
    moved: Bool[Array, " N"] | None = None  # whether the crop lies elsewhere, or is larger, because of the boxes
    blur: Float[Array, f"N {BLUR}"] | None = None  # weights, the same for rows and columns


def draw(batch, key, options: Preprocess) -> Draws:
    """For the images of a `Batch`, breast by breast; flips are those that the batch says.

    Crops keep the boxes that the batch has.
    """
    breasts, views, height, width = batch["image"].shape
    n = breasts * views
    affine_key, intensity_key = jax.random.split(key)
    gain, lift = jax.random.uniform(intensity_key, (2, n), minval=-1.0)
    flips = [batch[f"flip_{axis}"] for axis in ("horizontal", "vertical")]
    flips = [flip.ravel() if flip.ndim == 2 else jnp.repeat(flip, views) for flip in flips]
    draws = Draws(
        *flips,
        random_affine(affine_key, (n, height, width), options),
        options.contrast * gain,
        options.brightness * lift,
    )
    # Keys of their own: what was drawn before there were these stays as it was.
    if options.crops:
        held = around(with_moved_boxes(batch, draws, options)) if "boxes" in batch else None
        crop, moved = random_crop(jax.random.fold_in(key, 2), (n, height, width), options, held)
        draws = draws._replace(crop=crop, moved=moved)
    if options.jitter_probability < 1:
        jittered = jax.random.bernoulli(jax.random.fold_in(key, 4), options.jitter_probability, (n,))
        draws = draws._replace(gain=draws.gain * jittered, lift=draws.lift * jittered)
    if options.blur > 0:
        draws = draws._replace(blur=random_blur(jax.random.fold_in(key, 3), n, options))
    return draws


def train_images(image: Shaped[Array, "N H W"], draws: Draws, options: Preprocess) -> Float[Array, "N H W C"]:
    """Flipped, then varied as drawn, then normalised."""
    image = to_unit(image)
    image = jnp.where(draws.flip_horizontal[:, None, None], image[..., ::-1], image)
    image = jnp.where(draws.flip_vertical[:, None, None], image[:, ::-1], image)
    if options.affine_probability > 0:
        image = jax.vmap(warp)(image, draws.matrix)
    if draws.crop is not None:
        image = jax.vmap(enlarged)(image, draws.crop)
    if options.contrast or options.brightness:
        gain, lift = draws.gain[:, None, None], draws.lift[:, None, None]
        image = jnp.clip(image * (1 + gain) + lift * (image > 0), 0, 1)
    if draws.blur is not None:
        image = blurred(image, draws.blur)
    return normalise(image, options)


def boxes(
    boxes: Float[Array, "N M 4"], draws: Draws, size: tuple[int, int], affine: bool
) -> tuple[Float[Array, "N M 4"], Bool[Array, "N M"]]:
    """Boxes (left, top, right, bottom) where `train_images` moves them, cut to the image; and which are still there.

    A turned box becomes the upright one around it. One of which less than a quarter is left in the image is gone; the
    crop comes after that.
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
    area, kept = (right - left) * (bottom - top), _area(cut)
    there = kept > 0.25 * area
    if draws.crop is not None:
        start, end = draws.crop[:, None, :2], draws.crop[:, None, 2:]
        whole = jnp.array([width, height])
        cropped = jnp.concatenate(
            [jnp.clip((corner - start) / (end - start), 0, 1) * whole for corner in (cut[..., :2], cut[..., 2:])], -1
        )
        there &= _area(cropped) > 0.25 * kept * (whole / (end - start)).prod(-1)
        cut = cropped
    return cut, there


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def with_moved_boxes(batch, draws: Draws, options: Preprocess):
    """The `Batch` with its boxes where `train_images` moves them; the class of one that is gone is -1."""
    shape = batch["boxes"].shape
    moved, there = boxes(
        batch["boxes"].reshape(-1, *shape[2:]), draws, batch["image"].shape[-2:], options.affine_probability > 0
    )
    classes = jnp.where(there.reshape(shape[:-1]), batch["box_classes"], -1)
    return batch | {"boxes": moved.reshape(shape), "box_classes": classes}


def with_moved_masks(batch, draws: Draws, options: Preprocess):
    """The `Batch` with the bit planes of its masks where `train_images` moves them: of each pixel the nearest one's."""
    planes = batch["masks"].reshape(-1, *batch["masks"].shape[2:])
    planes = jnp.where(draws.flip_horizontal[:, None, None], planes[..., ::-1], planes)
    planes = jnp.where(draws.flip_vertical[:, None, None], planes[:, ::-1], planes)
    if options.affine_probability > 0:
        planes = jax.vmap(functools.partial(warp, order=0))(planes, draws.matrix)
    if draws.crop is not None:
        planes = jax.vmap(_nearest_in)(planes, draws.crop)
    return batch | {"masks": planes.reshape(batch["masks"].shape)}


def _nearest_in(planes: Shaped[Array, "H W"], crop: Float[Array, "4"]) -> Shaped[Array, "H W"]:
    """The part within `crop`, stretched to the size of the image, as `enlarged` stretches the image."""
    places = [
        jnp.clip(jnp.floor(start + (jnp.arange(n) + 0.5) * (end - start) / n).astype(int), 0, n - 1)
        for start, end, n in zip(crop[1::-1], crop[:1:-1], planes.shape)
    ]
    return planes[places[0][:, None], places[1]]


def around(batch) -> Float[Array, "N 4"]:
    """The box around all boxes of each image of a `Batch`; of one that has none (infinity, ..., -infinity)."""
    there = (batch["box_classes"] >= 0)[..., None]
    first = jnp.where(there, batch["boxes"][..., :2], jnp.inf).min(axis=-2)
    last = jnp.where(there, batch["boxes"][..., 2:], -jnp.inf).max(axis=-2)
    return jnp.concatenate([first, last], -1).reshape(-1, 4)


def crop_metrics(before, after, draws: Draws) -> dict:
    """What becomes of the lesions: the share of the boxes of a `Batch` that are still there once they are moved (1
    where there are none), and of the crops that lie where they do because of boxes."""
    had, there = before["box_classes"] >= 0, after["box_classes"] >= 0
    lost = (had & ~there).sum() / jnp.maximum(had.sum(), 1)
    return {"augment/boxes_kept": 1 - lost, "augment/crops_moved": draws.moved.mean()}


def eval_images(image: Shaped[Array, "N H W"], options: Preprocess) -> Float[Array, "N H W C"]:
    return normalise(to_unit(image), options)


def lit(image: Float[Array, "N H W C"]) -> Bool[Array, "N H W"]:
    """The pixels of the encoder's input that are brighter than the background."""
    return image[..., 0] > image[..., 0].min(axis=(1, 2), keepdims=True)


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


def warp(image: Shaped[Array, "H W"], matrix: Float[Array, "2 3"], order: int = 1) -> Shaped[Array, "H W"]:
    """Bilinear resampling, or with `order` 0 the nearest pixel; what lies outside is 0, the air around a breast."""
    height, width = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    # By elements: as a product of matrices a TPU would take coordinates in bfloat16, four pixels apart at 1,000.
    source = [matrix[i, 0] * rows + matrix[i, 1] * columns + matrix[i, 2] + centre[i] for i in (0, 1)]
    return map_coordinates(image, source, order=order, mode="constant", cval=0.0)


def random_crop(
    key, shape, options: Preprocess, held: Float[Array, "N 4"] | None = None
) -> tuple[Float[Array, "N 4"], Bool[Array, " N"]]:
    """Crops (left, top, right, bottom) of images of `shape` (N, H, W), and which of them are another one for `held`.

    The area is uniform in `options.crop`, the logarithm of the shape's ratio to the image's in that of `crop_ratio`, the
    place uniform, as torchvision's RandomResizedCrop; a side that is longer than the image's is cut to it, where
    torchvision draws again. A crop that has to hold a box is at least as large, and its place is uniform among those
    that hold it.
    """
    n, height, width = shape
    whole = jnp.array([width, height], jnp.float32)
    area, ratio, *place = jax.random.uniform(key, (4, n))
    area = options.crop[0] + (options.crop[1] - options.crop[0]) * area
    low, high = jnp.log(jnp.array(options.crop_ratio))
    ratio = jnp.exp(low + (high - low) * ratio)
    size = jnp.minimum(jnp.sqrt(jnp.stack([area * ratio, area / ratio], -1)), 1) * whole
    place = jnp.stack(place, -1)
    free = place * (whole - size)
    free = jnp.concatenate([free, free + size], -1)
    if held is None:
        return free, jnp.zeros(n, bool)
    first, last = held[:, :2], held[:, 2:]
    size = jnp.maximum(size, last - first)
    lowest, highest = jnp.maximum(last - size, 0), jnp.minimum(first, whole - size)
    start = lowest + place * (highest - lowest)
    moved = ((first < free[:, :2]) | (last > free[:, 2:])).any(-1)
    return jnp.concatenate([start, start + size], -1), moved


def enlarged(image: Float[Array, "H W"], crop: Float[Array, "4"]) -> Float[Array, "H W"]:
    """The part within `crop`, stretched to the size of the image: linear interpolation, by two products of matrices."""
    start, end = crop[1::-1], crop[:1:-1]  # row, column
    scale = jnp.array(image.shape) / (end - start)
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -start * scale, "linear", antialias=False)


def random_blur(key, n: int, options: Preprocess) -> Float[Array, f"N {BLUR}"]:
    """Weights of a Gaussian whose sigma is uniform in `options.blur_sigma`, as torchvision's; of the unlucky ones none."""
    chance, sigma = jax.random.uniform(key, (2, n))
    sigma = options.blur_sigma[0] + (options.blur_sigma[1] - options.blur_sigma[0]) * sigma
    offsets = jnp.arange(BLUR) - BLUR // 2
    weights = jnp.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.where((chance < options.blur)[:, None], weights, (offsets == 0).astype(weights.dtype))


def blurred(image: Float[Array, "N H W"], weights: Float[Array, "N K"]) -> Float[Array, "N H W"]:
    """Each image filtered along its rows and its columns by its own weights, mirrored at the rims."""
    reach = weights.shape[1] // 2
    for axis in (1, 2):
        pads = [(reach, reach) if axis == each else (0, 0) for each in range(3)]
        padded, length = jnp.pad(image, pads, mode="reflect"), image.shape[axis]
        image = sum(
            weights[:, tap, None, None] * jax.lax.slice_in_dim(padded, tap, tap + length, axis=axis)
            for tap in range(weights.shape[1])
        )
    return image
