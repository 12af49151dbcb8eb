"""A pydicom decoder plug-in for all JPEG processes of DICOM: baseline, extended 12-bit, lossless P14 and P14SV1.

imagecodecs (BSD) wraps libjpeg-turbo, whose releases since 3.0 decode 2 to 16-bit lossless and 12-bit extended JPEG, so
that no GPL decoder is needed. pydicom says what a plug-in is: https://pydicom.github.io/pydicom/stable/guides/decoding/
"""

import importlib.util

import numpy as np
from pydicom.pixels import decoders
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

NAME = "imagecodecs"
SYNTAXES = {
    JPEGBaseline8Bit: decoders.JPEGBaseline8BitDecoder,
    JPEGExtended12Bit: decoders.JPEGExtended12BitDecoder,
    JPEGLossless: decoders.JPEGLosslessDecoder,
    JPEGLosslessSV1: decoders.JPEGLosslessSV1Decoder,
}
DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in SYNTAXES}


def is_available(syntax: str) -> bool:
    """Whether pydicom can use this plug-in for a transfer syntax."""
    return syntax in SYNTAXES and importlib.util.find_spec("imagecodecs") is not None


def is_whole(source: bytes) -> bool:
    """Whether a JPEG or JPEG-LS stream has its end. Decoders fill what is missing with grey."""
    return source[-64:].rstrip(b"\0\xff").endswith(b"\xd9")  # fragments are padded


def decode_frame(source: bytes, runner: decoders.base.DecodeRunner) -> bytes:
    """One frame's samples, little endian, colours by pixel.

    Raises:
        ValueError: the stream is cut off, which libjpeg-turbo would fill with grey.
    """
    import imagecodecs  # only where a JPEG comes: the import is slow

    if not is_whole(source):
        raise ValueError("no end of image")
    image = np.ascontiguousarray(imagecodecs.jpeg8_decode(source))
    runner.set_option("bits_allocated", 8 * image.dtype.itemsize)
    if image.ndim == 3:  # libjpeg-turbo has made RGB of YCbCr
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", "RGB")
    return image.tobytes()


def register() -> None:
    """Makes the plug-in known to pydicom; a second time does nothing."""
    for decoder in SYNTAXES.values():
        if NAME not in decoder.available_plugins and not any("imagecodecs" in x for x in decoder.missing_dependencies):
            decoder.add_plugin(NAME, (__name__, "decode_frame"))
