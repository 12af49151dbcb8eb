"""PNG, TIFF, JPEG, PNM and BMP -> pixels, once the size that the file declares is known to be one of an image."""

import mmap
import re
import struct
from pathlib import Path

import cv2
import numpy as np

from mammoclip_jax.data.pixels.decode import MAX_PIXELS, Unreadable, stream_size

_PNM = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s")
_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
_INTEGERS = {3: "H", 4: "I", 16: "Q"}


def decode(path: Path) -> np.ndarray:
    """The stored values [h, w] or [h, w, channels] of a picture.

    Raises:
        Unreadable: it is no picture of these kinds, damaged, or of more than MAX_PIXELS.
    """
    look(path)
    try:  # not imread: it prints the names of files that it cannot read
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, OSError):
        array = None
    if array is None:
        raise _undecodable(path)
    return array


def look(path: Path) -> tuple[int, int]:
    """Height and width as a picture declares them.

    Raises:
        Unreadable: they cannot be found, or are of more than MAX_PIXELS.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            height, width = size(data)
    except (OSError, ValueError):
        raise _undecodable(path) from None
    if height * width > MAX_PIXELS:
        raise Unreadable(path, "decode", "impossible size", f"give images of at most {MAX_PIXELS:,} pixels")
    return height, width


def _undecodable(path: Path) -> Unreadable:
    return Unreadable(path, "decode", "cannot decode: picture", "the file is damaged or no picture; copy it again")


def size(data: bytes | mmap.mmap) -> tuple[int, int]:
    """Height and width as the bytes of a picture declare them.

    Raises:
        ValueError: they are of no known kind, or cut off.
    """
    head = bytes(data[:4096])
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", head, 16)
        elif head.startswith(b"BM"):
            width, height = struct.unpack_from("<HH" if head[14] == 12 else "<ii", head, 18)
        elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            width, height = _of_tiff(data, "<" if head[:1] == b"I" else ">", big=b"+" in head[:4])
        elif match := _PNM.match(head):
            width, height = int(match[1]), int(match[2])
        else:
            height, width = stream_size(bytes(data)) or (0, 0)
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError("a picture that is cut off") from error
    if not width or not height:
        raise ValueError("no picture")
    return abs(height), abs(width)  # of a BMP from the top, the height is negative


def _of_tiff(data: bytes | mmap.mmap, order: str, big: bool) -> tuple[int, int]:
    """Width and height of the first image of a TIFF or a BigTIFF."""
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    values = {}
    for at in range(start + (8 if big else 2), len(data), 20 if big else 12)[:count]:
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (_WIDTH, _HEIGHT):
            (values[tag],) = struct.unpack_from(order + _INTEGERS[kind], data, at + (12 if big else 8))
    return values[_WIDTH], values[_HEIGHT]
