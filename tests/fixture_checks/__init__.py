"""Comparisons of the package with files of numbers that others made, one module a file.

To add a file: a module here and its line in `FILES`. A module has

- `TOLERANCES`: [(regular expression on the array's name, largest difference in float64, in float32)], the first that
  matches counts; arrays called *_local4 or *_released are of a defective form and must differ from ours;
- `OFFERED`, where the package offers such a form too: a regular expression on the names that are compared as others are;
- `values(fixture, mesh)`: {array: what the package makes of it on the mesh}, with 1 and with 8 devices; what knows no
  devices is in the former alone.
"""

import re
from typing import NamedTuple

import jax
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import batch_sharding

FILES = {
    "glam.npz": "glam",
    "ladder.npz": "ladder",
    "ladder_planted.npz": "ladder_planted",
    "mama.npz": "mama",
    "medclip.npz": "medclip",
    "regionclip.npz": "regionclip",
    "roi_align.npz": "roi_align",
}
DEFECTIVE = re.compile(r"\w*_(local4|released)\w*")
APART = 1e-3  # from which on two values differ


class Fixture:
    """The arrays of a file, floating ones in one precision."""

    def __init__(self, path, dtype):
        self.path, self.dtype = path, np.dtype(dtype)
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = dict(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.exact(name)
        return array.astype(self.dtype) if array.dtype.kind == "f" else array

    def exact(self, name: str) -> np.ndarray:
        """The array as it is in the file."""
        if name not in self.arrays:
            raise UserError(f"{self.path} has no array {name!r}: it was cut short, or is of another form.")
        return self.arrays[name]

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin so, without that."""
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}


class Difference(NamedTuple):
    """The largest of an array, over the devices and, where they have several, the ways of computing it."""

    array: str
    precision: str  # fp64 or fp32
    largest: float
    allowed: float  # what it may be, or, of a defective form, must be
    must_differ: bool

    @property
    def beyond(self) -> bool:
        return not (self.largest >= self.allowed if self.must_differ else self.largest <= self.allowed)

    def __str__(self) -> str:
        bound = "at least" if self.must_differ else "at most"
        return f"{self.array} {self.precision}: {self.largest:.1e} ({bound} {self.allowed:.0e})"


def compare(module, fixture: Fixture, found: dict) -> list[Difference]:
    """`found` with the arrays of the same names. A value that is not finite, or of another shape, differs infinitely."""
    differences, precision = [], f"fp{8 * fixture.dtype.itemsize}"
    for name, ours in found.items():
        expected, ours = fixture.exact(name).astype(np.float64), np.asarray(ours, np.float64)
        differs = DEFECTIVE.fullmatch(name) and not re.fullmatch(getattr(module, "OFFERED", ""), name)
        same = ours.shape == expected.shape and np.isfinite(ours).all()
        largest = np.abs(ours - expected).max(initial=0) if same and np.isfinite(expected).all() else np.inf
        if differs:
            differences.append(Difference(name, precision, float(largest) if same else np.nan, APART, True))
            continue
        allowed = next(bounds for pattern, *bounds in module.TOLERANCES if re.fullmatch(pattern, name))
        differences.append(Difference(name, precision, float(largest), allowed[precision == "fp32"], False))
    return differences


def placed(mesh, *arrays):
    """Arrays whose rows are split over the devices of the mesh, filled up with ones where they do not split evenly; and
    which rows are no filling."""
    rows = len(arrays[0])
    size = -(-rows // mesh.size) * mesh.size
    filled = [np.concatenate([x, np.ones((size - rows, *x.shape[1:]), x.dtype)]) for x in arrays]
    return [jax.device_put(x, batch_sharding(mesh)) for x in (*filled, np.arange(size) < rows)]
