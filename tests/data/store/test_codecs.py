import struct
import zlib

import cv2
import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mammoclip_jax.data.store import codecs
from mammoclip_jax.data.store.codecs import CODECS, decode, encode
from mammoclip_jax.errors import UserError

HEADER = 12
CRC = 4


@pytest.fixture(params=CODECS)
def codec(request):
    return request.param


def picture(bits: int, shape=(75, 33)) -> np.ndarray:
    """Smooth with noise, so that every codec compresses."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    top = 2**bits - 1
    noise = np.random.default_rng(bits).integers(0, top // 20, shape)
    return ((y * 5 + x * 3) % 200 / 250 * top + noise).astype(f"u{bits // 8}")


images = st.sampled_from(["u1", "u2"]).flatmap(
    lambda dtype: arrays.arrays(
        dtype, st.tuples(st.integers(1, 70), st.integers(1, 9)), elements=st.integers(0, 2 ** (8 * int(dtype[1])) - 1)
    )
)


@settings(max_examples=60, deadline=None)
@given(image=images)
def test_every_codec_gives_back_any_image(image):
    for codec in CODECS:
        record = encode(image, codec)
        back = decode(record)
        assert record == encode(image.copy(), codec)
        assert back.dtype == image.dtype and back.flags.writeable
        np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("bits", [8, 16])
def test_views_and_real_sizes(codec, bits):
    for image in (picture(bits)[:, ::-1], picture(bits).T, picture(bits, (1520, 912))):
        np.testing.assert_array_equal(decode(encode(image, codec)), image)


@pytest.mark.parametrize("bits", [8, 16])
def test_delta_is_smaller_than_zstd_on_a_smooth_image_with_noise(bits):
    y, x = np.mgrid[:256, :256]
    noise = np.random.default_rng(0).normal(0, 3, (256, 256))
    image = (500 + 300 * np.sin(y / 40) * np.cos(x / 60) + noise).clip(0, 1000) * (2**bits - 1) / (2**bits + 3000)
    size = {name: len(encode(image.astype(f"u{bits // 8}"), name)) for name in ("raw", "zstd", "delta")}
    assert size["delta"] < size["zstd"] and size["zstd"] < size["raw"]


def test_other_types_and_unknown_codecs_are_refused():
    for wrong in (
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((2, 2), np.int16),
        np.zeros((0, 2), np.uint8),
        np.zeros((1, 65536), np.uint8),
    ):
        with pytest.raises(TypeError):
            encode(wrong, "raw")
    with pytest.raises(UserError, match="jpeg"):
        encode(picture(8), "jpeg")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_damaged_record_is_a_value_error(codec, bits):
    record = encode(picture(bits), codec)
    generator = np.random.default_rng(1)
    for length in {0, 1, 11, 12, 15, 16, 17, len(record) // 2, len(record) - 1}:
        with pytest.raises(ValueError):
            decode(record[:length])
    with pytest.raises(ValueError):
        decode(record + b"\0")
    for position in [*range(HEADER + CRC + 8), *generator.integers(0, len(record), 200)]:
        damaged = bytearray(record)
        damaged[position] ^= 1 << int(generator.integers(8))
        with pytest.raises(ValueError):
            decode(bytes(damaged))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_false_payload_with_a_right_checksum_is_a_value_error(codec, bits):
    """As a faulty writer could make it: the decoders themselves must find it."""
    head = encode(picture(bits), codec)[:HEADER]
    others = [
        b"",
        b"\0",
        bytes(5000),
        encode(picture(bits, (75, 34)), codec)[HEADER + CRC :],
        encode(picture(24 - bits), codec)[HEADER + CRC :],
    ]
    for payload in others:
        with pytest.raises(ValueError):
            decode(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload)


@pytest.mark.parametrize("bits", [8, 16])
def test_records_of_the_first_layout_stay_readable(bits):
    image = picture(bits)
    payloads = [
        image.tobytes(),
        pyarrow.Codec("zstd").compress(image.tobytes(), asbytes=True),
        cv2.imencode(".png", image)[1].tobytes(),
    ]
    for codec, payload in enumerate(payloads):
        old = struct.pack("<4sBBHHH", b"MJX1", codec, bits, 0, *image.shape) + payload
        np.testing.assert_array_equal(decode(old), image)
        for damaged in (old[:-5], old[:40]):
            with pytest.raises(ValueError):
                decode(damaged)


def test_codec_numbers_never_change():
    assert CODECS == ("raw", "zstd", "png", "htj2k", "delta")
    assert [encode(picture(8), name)[4] for name in ("raw", "zstd", "png", "delta")] == [0, 1, 2, 4]


def test_header_says_what_is_inside():
    assert codecs.header(encode(picture(16), "delta")) == ("delta", 16, 1, 75, 33)


def test_png_payload_opens_elsewhere():
    image = picture(16)
    payload = encode(image, "png")[HEADER + CRC :]
    assert payload.startswith(b"\x89PNG")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED), image)
