"""A prepared set of a few phantom exams, each breast with a mass and calcifications or without."""

from pathlib import Path

from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.store.shards import Dataset


def prepared(folder: Path, exams: int = 2, height: int = 192, width: int = 128, **parameters) -> Dataset:
    """Four images an exam; `parameters` are those of phantoms."""
    generate.generate(folder / "exams", exams, Parameters(height=320, width=256, **parameters))
    prepare("phantom", folder / "exams", folder / "set", workers=0, geometry="fit", height=height, width=width)
    return Dataset.open(folder / "set")
