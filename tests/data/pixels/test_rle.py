"""RLE frames: the pixels that were encoded, and nothing of a frame in which anything is odd."""

import numpy as np
import pytest
from pydicom.pixels.encoders import RLELosslessEncoder

from mammoclip_jax.data.pixels import rle


def encoded(pixels: np.ndarray) -> bytes:
    bits = 8 * pixels.dtype.itemsize
    return RLELosslessEncoder.encode(
        pixels.tobytes(),
        encoding_plugin="pydicom",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        bits_allocated=bits,
        bits_stored=bits,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 48), (7, 301)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_are_decoded_to_what_they_were(shape, dtype):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    pixels[shape[0] // 2 :] = 7  # runs
    found = rle.decode(encoded(pixels), *shape, 8 * pixels.dtype.itemsize)
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == dtype


def test_what_is_odd_is_left_to_another_decoder():
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    whole = encoded(pixels)
    second = int.from_bytes(whole[8:12], "little")
    for frame, rows, bits in (
        (whole, 5, 16),  # more than the header has
        (whole, 7, 16),  # less
        (whole, 6, 8),  # another number of segments
        (whole, 6, 32),
        (whole[: second + 2], 6, 16),  # cut off
        (whole[:60], 6, 16),
        (b"", 6, 16),
        (whole[:8] + (10**6).to_bytes(4, "little") + whole[12:], 6, 16),  # a segment begins behind the end
        (whole[:4] + (65).to_bytes(4, "little") + whole[8:], 6, 16),
    ):
        assert rle.decode(frame, rows, 8, bits) is None
