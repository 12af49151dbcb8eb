"""The published EfficientNets: B0 to B7, and Lite0 to Lite4 (efficientnet.py)."""

from typing import NamedTuple


class Variant(NamedTuple):
    """Published scaling of B0; `size` is the side of the square input that the weights were trained for."""

    width: float
    depth: float
    size: int
    drop_rate: float
    lite: bool = False


VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2),
    "b1": Variant(1.0, 1.1, 240, 0.2),
    "b2": Variant(1.1, 1.2, 260, 0.3),
    "b3": Variant(1.2, 1.4, 300, 0.3),
    "b4": Variant(1.4, 1.8, 380, 0.4),
    "b5": Variant(1.6, 2.2, 456, 0.4),
    "b6": Variant(1.8, 2.6, 528, 0.5),
    "b7": Variant(2.0, 3.1, 600, 0.5),
    "lite0": Variant(1.0, 1.0, 224, 0.2, lite=True),
    "lite1": Variant(1.0, 1.1, 240, 0.2, lite=True),
    "lite2": Variant(1.1, 1.2, 260, 0.3, lite=True),
    "lite3": Variant(1.2, 1.4, 280, 0.3, lite=True),
    "lite4": Variant(1.4, 1.8, 300, 0.3, lite=True),
}
