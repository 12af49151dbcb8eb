"""The image tower as StableHLO programs: pixels in, unit vectors out, without this package's code.

    image_tower.json                what goes in and comes out, platforms, versions, licences, checksums
    image_tower.PLATFORM.stablehlo  a `jax.export` program with the weights inside, for any batch size

`load_image(FOLDER)` checks and calls it; without this package `jax.export.deserialize(bytearray(FILE)).call(images)`.

One program a platform, since depthwise convolutions are written in the form that the platform runs well
(models/depthwise.py decides when a program is lowered). JAX reads such files for at least six months after it wrote
them (https://docs.jax.dev/en/latest/export/export.html); the model folder is what lasts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup
from mammoclip_jax.provenance import without_paths
from mammoclip_jax.training import augment
from mammoclip_jax.weights.folder import replacing, sha256

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT, VERSION = "mammoclip_jax image tower", 1
DESCRIPTION = "image_tower.json"
_MODULES = ("image_encoder", "image_projection", "logit_scale")  # the last is declared by the module, not used here


def export_image(
    out: str | Path, variables: Mapping[str, Any], meta: Mapping[str, Any], *, platforms: Sequence[str] = PLATFORMS
) -> Path:
    """Writes the programs of a dual encoder's image tower into the folder `out`; returns its path.

    Each maps images [b, H, W], uint8 or uint16 as `meta["preprocessing"]` says, to unit vectors float32 [b, D], with
    the normalisation of `config.image` inside.

    Args:
        variables: {"params", "batch_stats"} without adapters beside the kernels.
        meta: config with image and model, preprocessing, provenance, step, as of a model folder.

    Raises:
        UserError: there is no such platform, or something else is at `out`.
    """
    known = {name: name for name in PLATFORMS}
    platforms = [lookup(known, platform, "platform") for platform in dict.fromkeys(platforms)]
    if not platforms:
        raise UserError(f"--platforms is empty: name one or more of {', '.join(PLATFORMS)}.")
    tower, images = _tower(variables, meta), _images(meta["preprocessing"])
    files = {platform: _file(platform) for platform in platforms}
    with replacing(out, (DESCRIPTION, *map(_file, PLATFORMS)), _is_ours) as place:
        for platform, file in files.items():
            program = export.export(jax.jit(tower), platforms=[platform])(images)
            (place / file).write_bytes(program.serialize())
        (vectors,) = program.out_avals
        height, width = images.shape[1:]
        description = {
            "format": FORMAT,
            "format_version": VERSION,
            "name": meta["config"].get("name", ""),
            "step": meta["step"],
            "input": {"dtype": images.dtype.name, "shape": ["b", height, width]},
            "output": {"dtype": vectors.dtype.name, "shape": ["b", vectors.shape[1]], "norm": 1},
            "preprocessing": dict(meta["preprocessing"]),
            "programs": {platform: {"file": file, "sha256": sha256(place / file)} for platform, file in files.items()},
            "jax": jax.__version__,
            "calling_convention": program.calling_convention_version,
            "provenance": meta["provenance"],
        }
        (place / DESCRIPTION).write_text(json.dumps(without_paths(description), indent=2) + "\n", encoding="utf-8")
    return Path(out)


def load_image(path: str | Path, platform: str = "") -> Callable[[np.ndarray], np.ndarray]:
    """The function in a folder that `export_image` wrote: images [N, H, W] to unit vectors [N, D], both NumPy.

    It compiles anew for every batch size it has not seen.

    Args:
        platform: by default the one that this process computes on.

    Raises:
        UserError: the folder is of another kind, damaged, newer, or lacks the platform; and, when the function is
            called, the images are not of the size and type that it was made for.
    """
    path = Path(path)
    description = _read_description(path)
    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    programs = description["programs"]
    entry = lookup({name: name for name in programs}, platform, f"program in {path} for the platform")
    file = path / programs[entry]["file"]
    if not file.is_file():
        raise UserError(f"{file} is missing: copy the whole folder, or export the model again.")
    if sha256(file) != programs[entry]["sha256"]:
        raise UserError(f"{file} is damaged: its SHA-256 is not the one in {DESCRIPTION}. Copy the folder again.")
    call = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
    shape, dtype = tuple(description["input"]["shape"][1:]), description["input"]["dtype"]

    def embed_image(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.shape[1:] != shape or images.dtype != dtype or not len(images):
            raise UserError(
                f"the images are {images.dtype} {list(images.shape)}; {file.name} takes {dtype} [N, "
                f"{shape[0]}, {shape[1]}], N at least 1, preprocessed as {DESCRIPTION} says."
            )
        return np.asarray(call(images))

    return embed_image


def _tower(variables, meta) -> Callable[[jax.Array], jax.Array]:
    options = {"projection": {"kind": "linear"}, "dtype": "float32"} | dict(meta["config"]["model"])
    module = models.build(options, 0)  # the text encoder is never called
    pixels = augment.Preprocess(**meta["config"]["image"])
    head = ("heads",) if module.image_head else ()
    used = {
        collection: {name: tree[name] for name in (*_MODULES, *head) if name in tree}
        for collection, tree in variables.items()
    }

    def embed_one(image):
        image = augment.eval_images(image[None], pixels)
        vectors, _ = module.apply(used, image, train=False, method="encode_image")
        return vectors[0]

    return jax.vmap(embed_one)  # so that no encoder has to reckon with a batch size that is no number


def _images(preprocessing: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    (batch,) = export.symbolic_shape("b")
    dtype = jnp.uint16 if preprocessing.get("bits", 8) == 16 else jnp.uint8
    return jax.ShapeDtypeStruct((batch, preprocessing["height"], preprocessing["width"]), dtype)


def _file(platform: str) -> str:
    return f"image_tower.{platform}.stablehlo"


def _is_ours(path: Path) -> bool:
    try:
        return bool(_read_description(path))
    except UserError:
        return False


def _read_description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no folder of image tower programs: {DESCRIPTION} cannot be read ({error}). Name "
            "one that `weights export --format=stablehlo` wrote."
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(
            f"{file} does not describe image tower programs: name a folder that "
            "`weights export --format=stablehlo` wrote."
        )
    if description["format_version"] > VERSION:
        raise UserError(
            f"{file} is of format version {description['format_version']}, this program knows up to "
            f"{VERSION}: update mammoclip_jax."
        )
    return description
