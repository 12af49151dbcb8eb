"""Size and speed of each codec, one thread, next to PNG in memory by OpenCV."""

import cv2
import numpy as np

from mammoclip_jax.benchmarks.sample import Sample
from mammoclip_jax.benchmarks.timing import interleaved, rates
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.data.store.codecs import CODECS, decode, encode

BASELINE = "cv2 png"


def run(sample: Sample, *, height: int, width: int, repeats: int) -> list[dict]:
    """A row a codec and number of bits: kib, encode and decode images per second, decode ratio to PNG by OpenCV."""
    return [
        row for bits in (8, 16) for row in _rows(sample, Preprocessing(height=height, width=width, bits=bits), repeats)
    ]


def _rows(sample: Sample, preprocessing: Preprocessing, repeats: int) -> list[dict]:
    images = [render(file, preprocessing).image for file in sample.files]
    encoders = {BASELINE: lambda image: cv2.imencode(".png", image)[1]}
    decoders = {BASELINE: lambda record: cv2.imdecode(record, cv2.IMREAD_UNCHANGED)}
    for codec in CODECS:
        encoders[codec] = lambda image, codec=codec: encode(image, codec)
        decoders[codec] = decode
    records = {name: [encoder(image) for image in images] for name, encoder in encoders.items()}
    for name, decoder in decoders.items():
        if not all(np.array_equal(decoder(record), image) for record, image in zip(records[name], images)):
            raise AssertionError(f"{name} is not lossless")
    writing = interleaved(
        {name: lambda encoder=encoder: list(map(encoder, images)) for name, encoder in encoders.items()},
        max(1, repeats // 3),
    )
    reading = interleaved(
        {name: lambda name=name: list(map(decoders[name], records[name])) for name in decoders}, repeats
    )
    return [
        {
            "bits": preprocessing.bits,
            "codec": name,
            "kib": round(np.mean([len(r) for r in records[name]]) / 1024),
            "encode_per_second": rates(writing[name], len(images))["images_per_second"],
            **{f"decode_{key}": value for key, value in rates(reading[name], len(images)).items()},
            "decode_ratio": round(float(np.median(reading[BASELINE] / reading[name])), 2),
        }
        for name in decoders
    ]
