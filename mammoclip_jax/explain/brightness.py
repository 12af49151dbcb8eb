"""Brightness: the cheapest guess of where a finding is, to be held against every other map."""

from jaxtyping import Array, Float

from mammoclip_jax.explain.deletion import blurred_image

_SIGMA = 1 / 64


def brightness(subject, pixels, direction, stage: str, *, sigma: float | None = None) -> Float[Array, "H W"]:
    """The blurred image, in grey values from 0 to 1. The direction has no part in it: the map is the same for every text.

    Args:
        sigma: standard deviation of the Gaussian blur in pixels; None: a 64th of the shorter side.
    """
    black, white = subject.grey(0.0), subject.grey(1.0)
    grey = (pixels[0].mean(axis=-1, keepdims=True) - black) / (white - black)
    return blurred_image(grey, sigma or _SIGMA * min(grey.shape[:2]))[..., 0]
