"""Image <-> record, lossless: the same image gives the same bytes.

A record is a 12-byte header (magic "MJX1", codec, bits, layout, height, width; little endian), then, where the layout
is 1, the CRC-32 of header and pixels, then the coded pixels. Layout 0 has no CRC; older data sets have it. No decoder
sees bytes whose CRC is wrong. Codecs are known by their place in CODECS (__init__.py).

| codec | pixels are                                                          | in short                            |
|-------|---------------------------------------------------------------------|-------------------------------------|
| raw   | as they are                                                         | largest                             |
| zstd  | compressed by Zstandard                                             | fastest to read                     |
| png   | a PNG file                                                          | opens anywhere, slowest             |
| htj2k | an HTJ2K codestream (ISO/IEC 15444-15)                              | smallest                            |
| delta | differences of rows, bytes of one significance together, Zstandard  | size of PNG, speed near Zstandard's |

`python -m mammoclip_jax.benchmark --mode=codecs` measures them.
"""

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow

from mammoclip_jax.data.store import CODECS as CODECS  # handed on
from mammoclip_jax.data.store import DEFAULT_CODEC as DEFAULT_CODEC
from mammoclip_jax.errors import UserError

_HEADER = struct.Struct("<4sBBHHH")
_CRC = struct.Struct("<I")
_MAGIC = b"MJX1"
_CHECKED = 1
_DTYPES = {8: np.dtype("u1"), 16: np.dtype("<u2")}
_PNG_LEVEL = 6
_ZSTD_LEVEL = 3
_BLOCK = 32  # rows; part of the format of `delta`


class _Codec(NamedTuple):
    encode: Callable[[np.ndarray], bytes]  # of a contiguous image
    decode: Callable[[memoryview, tuple[int, int], np.dtype], np.ndarray]


def encode(image: np.ndarray, codec: str) -> bytes:
    """The record of an image uint8 or uint16 [H, W], up to 65535 rows and columns.

    Raises:
        UserError: unknown codec.
    """
    bits = image.dtype.itemsize * 8
    if image.ndim != 2 or image.dtype.kind != "u" or bits not in _DTYPES or not image.size or max(image.shape) > 65535:
        raise TypeError(f"an image is uint8 or uint16 [H, W], not {image.dtype} {image.shape}")
    header = _HEADER.pack(_MAGIC, CODECS.index(known(codec)), bits, _CHECKED, *image.shape)
    payload = _CODECS[codec].encode(np.ascontiguousarray(image, _DTYPES[bits]))
    return b"".join((header, _CRC.pack(zlib.crc32(payload, zlib.crc32(header))), payload))


def decode(record: bytes) -> np.ndarray:
    """The image of a record, uint8 or uint16 [H, W], writable.

    Raises:
        ValueError: damaged, or no record of this version.
    """
    codec, bits, layout, *shape = header(record)
    start = _HEADER.size
    if layout == _CHECKED:
        start += _CRC.size
        crc = zlib.crc32(memoryview(record)[start:], zlib.crc32(record[: _HEADER.size]))
        if record[_HEADER.size : start] != _CRC.pack(crc):
            raise ValueError("damaged record: its checksum is wrong")
    dtype = _DTYPES[bits]
    try:
        image = _CODECS[codec].decode(memoryview(record)[start:], tuple(shape), dtype)
    except (OSError, cv2.error, RuntimeError) as error:  # the last is imagecodecs' and base of its errors
        raise ValueError(f"damaged record: {codec} cannot decode it ({type(error).__name__})") from error
    if image is None or image.shape != tuple(shape) or image.dtype != dtype:
        raise ValueError("damaged record: header and pixels differ")
    return image


class Header(NamedTuple):
    """What a record says about itself."""

    codec: str
    bits: int
    layout: int
    height: int
    width: int


def header(record: bytes) -> Header:
    """The header of a record. Raises ValueError where there is none of this version."""
    if len(record) < _HEADER.size:
        raise ValueError("not an image record: too short")
    magic, codec, bits, layout, height, width = _HEADER.unpack_from(record)
    if magic != _MAGIC or codec >= len(CODECS) or bits not in _DTYPES or layout > _CHECKED or not height * width:
        raise ValueError("not an image record of this version")
    return Header(CODECS[codec], bits, layout, height, width)


def known(codec: str) -> str:
    """`codec` itself.

    Raises:
        UserError: there is no such codec.
    """
    if codec not in CODECS:
        raise UserError(f"there is no codec {codec!r}; choose one of {', '.join(CODECS)}")
    return codec


def _raw_decode(payload: memoryview, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(payload, dtype).reshape(shape).copy()  # ValueError for another number of bytes


def _zstd() -> pyarrow.Codec:
    return pyarrow.Codec("zstd", compression_level=_ZSTD_LEVEL)


def _zstd_encode(image: np.ndarray) -> bytes:
    return _zstd().compress(image, asbytes=True)


def _zstd_decode(payload: memoryview, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    # The buffer is new and its own: the array is writable without a copy.
    buffer = _zstd().decompress(payload, decompressed_size=shape[0] * shape[1] * dtype.itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _png_encode(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])[1].tobytes()


def _png_decode(payload: memoryview, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    del shape, dtype
    return cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)


def _htj2k_encode(image: np.ndarray) -> bytes:
    import imagecodecs  # slow to import

    return imagecodecs.htj2k_encode(image, reversible=True)


def _htj2k_decode(payload: memoryview, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    import imagecodecs

    image = np.empty(shape, dtype)
    imagecodecs.htj2k_decode(payload, out=image)
    return image


def _delta_encode(image: np.ndarray) -> bytes:
    """Each row less the one above, the first row of a block less that of the block above; modulo 2^bits."""
    rows = image.copy()
    rows[1:] -= image[:-1]
    starts = image[::_BLOCK]
    rows[_BLOCK::_BLOCK] = starts[1:] - starts[:-1]
    if image.itemsize == 1:
        return _zstd_encode(rows)
    return _zstd_encode(np.ascontiguousarray(rows.view(np.uint8).reshape(*image.shape, 2).transpose(2, 0, 1)))


def _delta_decode(payload: memoryview, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    # In blocks, since NumPy then adds many rows at a time, without the interpreter and its lock.
    height, width = shape
    if dtype.itemsize == 1:
        rows = _zstd_decode(payload, shape, dtype)
    else:
        rows = np.empty(shape, dtype)
        low, high = _zstd_decode(payload, (2 * height, width), _DTYPES[8]).reshape(2, height, width)
        split = rows.view(np.uint8).reshape(height, width, 2)
        split[..., 0], split[..., 1] = low, high
    for row in range(_BLOCK, height, _BLOCK):
        rows[row] += rows[row - _BLOCK]
    whole = height // _BLOCK * _BLOCK
    blocks = rows[:whole].reshape(-1, _BLOCK, width)
    for row in range(1, _BLOCK):
        blocks[:, row] += blocks[:, row - 1]
    for row in range(whole + 1, height):
        rows[row] += rows[row - 1]
    return rows


_CODECS = {
    "raw": _Codec(lambda image: image.tobytes(), _raw_decode),
    "zstd": _Codec(_zstd_encode, _zstd_decode),
    "png": _Codec(_png_encode, _png_decode),
    "htj2k": _Codec(_htj2k_encode, _htj2k_decode),
    "delta": _Codec(_delta_encode, _delta_decode),
}
