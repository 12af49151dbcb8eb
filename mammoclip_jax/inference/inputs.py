"""What models for use are given, checked where it comes in: a mistake is named here, with what was probably meant, not found
in the figures or in a message from deep inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mammoclip_jax.errors import UserError

DTYPES = (np.uint8, np.uint16)


def images(given: Any, size: tuple[int, int] | None, views: bool = False) -> Shaped[np.ndarray, "N *V H W"]:
    """Preprocessed images as an array; `views`: those of one breast or exam each, [N, V, H, W].

    Args:
        size: height and width that the model wants, pixels; None: any.

    Raises:
        UserError: files, another type of pixels than uint8 or uint16, another size, one image without the first dimension,
            colour channels, images of several sizes, or none.
    """
    form = "[N, V, H, W], the views of N breasts or exams" if views else "[N, H, W]"
    if isinstance(given, (str, Path)) or (
        isinstance(given, Sequence) and any(isinstance(x, (str, Path)) for x in given)
    ):
        raise UserError(
            "images are arrays of pixels, and these are names of files: model.read_images(files) reads them."
        )
    try:
        array = np.asarray(given)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype == object:
        raise UserError(f"images must be one array {form}: these are of several sizes, or no arrays of numbers.")
    wanted = f"{form} of uint8 or uint16, as model.read_images makes them"
    if array.size == 0:
        raise UserError(f"there is no image: the array has the shape {list(array.shape)}.")
    hint = _shape_hint(array.shape, size, views)
    if array.ndim != 3 + views or hint:
        raise UserError(f"images must be {wanted}, and these have the shape {list(array.shape)}{hint}.")
    if array.dtype not in DTYPES:
        raise UserError(f"images must be {wanted}, and these are {array.dtype}{_type_hint(array)}.")
    if size and array.shape[-2:] != tuple(size):
        raise UserError(
            f"this model's images have {size[0]} x {size[1]} pixels (height x width), and these {array.shape[-2]} x "
            f"{array.shape[-1]}: model.read_images prepares files as the model has learnt to see them, without stretching."
        )
    return array


def texts(given: Any, what: str = "texts") -> list[str]:
    """A list of texts.

    Raises:
        UserError: one text instead of a list, something else than texts, or none.
    """
    if isinstance(given, str):
        raise UserError(
            f"{what} must be a list, and this is one text, which would be read letter by letter: [{given!r}]."
        )
    found = list(given)
    for one in found:
        if not isinstance(one, str):
            raise UserError(f"{what} must be a list of str, and one is {type(one).__name__}: {repr(one)[:60]}.")
    if not found:
        raise UserError(f"there is nothing to embed: the list of {what} is empty.")
    return found


def pairs(count: int, towards: Any, labels: Sequence[str] = ()) -> Any:
    """What each of `count` images is explained towards: texts, labels or vectors, one for each.

    Raises:
        UserError: a single text, or another number of them.
    """
    what = "labels" if len(labels) else "texts"
    if isinstance(towards, str):
        raise UserError(f"give one of the {what} for each image: [{towards!r}] * len(images).")
    if len(towards) != count:
        many = f" [{towards[0]!r}] * {count}" if len(towards) == 1 and isinstance(towards[0], str) else ""
        raise UserError(
            f"{count} images and {len(towards)} {what} or directions: give one for each image{', as' + many if many else ''}."
        )
    return towards


def files(given: Any) -> list[Path]:
    """Paths of files that are there.

    Raises:
        UserError: one path instead of a list, an empty list, or a file that is missing.
    """
    if isinstance(given, (str, Path)):
        raise UserError(f"files must be a list, and this is one path: [{str(given)!r}].")
    found = [Path(file) for file in given]
    if not found:
        raise UserError("there is nothing to read: the list of files is empty.")
    missing = [str(file) for file in found if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not there, or is no file ({len(missing)} of {len(found)} files are missing).")
    return found


def _shape_hint(shape: tuple[int, ...], size: tuple[int, int] | None, views: bool) -> str:
    ends = 3 + views
    if len(shape) == ends - 1 and (size is None or shape[-2:] == tuple(size)):
        return ": one image is images[None]" if not views else ": the views of one are images[None]"
    if len(shape) >= ends and shape[-1] in (1, 3):
        return ": images are grey, without channels, which are made on the device; images[..., 0] leaves them out"
    return ""


def _type_hint(array: np.ndarray) -> str:
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 65535:
        return f": they reach from {low} to {high}; images.astype(np.{'uint8' if high <= 255 else 'uint16'}) keeps them"
    if np.issubdtype(array.dtype, np.floating):
        return f": they reach from {low:.3g} to {high:.3g}; normalisation is the model's part, so give pixels before it"
    return ""
