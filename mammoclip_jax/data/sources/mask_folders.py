"""True masks of images as files: DIR/CHANNEL/ and then the image's path with the ending .png, not 0 inside.

A channel without such a file is unknown of that image; a file of zeros says that there is none of it.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from mammoclip_jax.data.manifest import MaskSource
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.errors import UserError


def below(folder: Path, images: Mapping[str, str]) -> MaskSource:
    """The masks below a folder, of the images {file below the root: name of the image}.

    Raises:
        UserError: there is no mask of any image.
    """
    channels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()
    of: dict[str, dict[str, str]] = {}
    for file, image in images.items():
        paths = {channel: folder / channel / Path(file).with_suffix(".png") for channel in channels}
        if there := {channel: str(path.absolute()) for channel, path in paths.items() if path.is_file()}:
            of[image] = there
    if not of:
        raise UserError(
            f"--option=masks={folder} holds no mask of an image: give a folder with one folder a channel, in it the "
            "images' paths with the ending .png."
        )
    return MaskSource(channels, of, read)


def read(root: Path, files: Mapping[str, str], size: tuple[int, int]) -> Mapping[str, Bool[np.ndarray, "h w"]]:
    """The masks {channel: file} of an image.

    Raises:
        dicom.Unreadable: a file is no picture.
    """
    del root, size  # a mask of another size is found out
    masks = {}
    for channel, file in files.items():
        mask = cv2.imdecode(np.frombuffer(Path(file).read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise dicom.Unreadable(file, "masks", "mask that is no picture", "write it again as PNG")
        masks[channel] = mask > 0
    return masks
