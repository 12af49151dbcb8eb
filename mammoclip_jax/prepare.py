"""Files and tables -> data set folder.

Example:
    python -m mammoclip_jax.prepare --source=mias --root=data/mias --out=prepared/mias --geometry=fit --height=512 \
        --width=320 --workers=2
"""

import csv
import importlib.metadata
import json
import os
import time
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.data import sources
from mammoclip_jax.data.build import build
from mammoclip_jax.data.identity import private_folder
from mammoclip_jax.data.intensity import POLICIES
from mammoclip_jax.data.render import CROPS, GEOMETRIES, Preprocessing
from mammoclip_jax.data.shards import CODECS
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_options


def prepare(source: str, root, out, *, shards: int = 0, workers: int | None = None, codec: str = "zstd",
            max_quarantined: float = 0.2, vocab_size: int = 4096, options: dict | None = None, **preprocessing) -> dict:
    """Prepares a data set; on a finished folder it only checks that the parameters are the same.

    Args:
        source: name of an adapter in data/sources.
        root: folder of its files ("" where the adapter needs none).
        out: the data set folder.
        workers: processes; None for one a core.
        options: options of the adapter.
        preprocessing: fields of `Preprocessing`: geometry, height, width, intensity, bits, crop.

    Returns:
        images, studies, patients, boxes, texts, images_in, quarantined, absent, reasons, splits, up_to_date.

    Raises:
        UserError: anything the caller can mend.
    """
    read = sources.reader(source)
    check_options(read, options or {}, f"data source {source!r}")
    check_options(Preprocessing, preprocessing, "prepare")
    table = read(root, **(options or {}))
    provenance = {"source": source, "options": {key: str(value) for key, value in (options or {}).items()},
                  "version": _version()}
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    return build(table, root, out, preprocessing=Preprocessing(**preprocessing), shards=shards, workers=workers,
                 codec=codec, max_quarantined=max_quarantined, vocab_size=vocab_size, provenance=provenance)


def _version() -> str:
    try:
        return importlib.metadata.version("mammoclip_jax")
    except importlib.metadata.PackageNotFoundError:     # a checkout that was never installed
        return "not installed"


def define_flags() -> None:
    """The flags of the command; not at import, since pretrain imports this module and has flags of its own."""
    default = Preprocessing()
    flags.DEFINE_enum("source", None, sorted(sources.SOURCES), "The adapter.")
    flags.DEFINE_string("root", "", "Folder of the source's files.")
    flags.DEFINE_string("out", None, "Data set folder to make.")
    flags.DEFINE_enum("geometry", default.geometry, GEOMETRIES, "fit keeps the aspect ratio; stretch is Mammo-CLIP's.")
    flags.DEFINE_integer("height", default.height, "Rows of the canvas.")
    flags.DEFINE_integer("width", default.width, "Columns of the canvas.")
    flags.DEFINE_enum("intensity", default.intensity, POLICIES, "Stored values to grey values; see data/intensity.py.")
    flags.DEFINE_enum("bits", str(default.bits), ["8", "16"], "Bits of a stored pixel.")
    flags.DEFINE_enum("crop", default.crop, CROPS, "How the breast is cut out.")
    flags.DEFINE_enum("codec", "zstd", CODECS, "zstd reads fastest for its size, png is smallest, raw is neither.")
    flags.DEFINE_integer("shards", 0, "Number of shards; 0 for one per 256 images.", lower_bound=0)
    flags.DEFINE_integer("workers", None, "Processes; one a core unless given.", lower_bound=0)
    flags.DEFINE_float("max_quarantined", 0.2, "Fraction of bad images from which on the command fails.", 0, 1)
    flags.DEFINE_integer("vocab_size", 4096, "Upper bound for the vocabulary trained on the texts.")
    flags.DEFINE_multi_string("option", [], "key=value for the adapter; may be repeated.")
    flags.DEFINE_string("json", "", "File for the figures.")
    flags.mark_flags_as_required(["source", "out"])


def parse_options(pairs: list[str]) -> dict:
    """["key=value", ...] -> {key: value}; numbers, true and false as such, anything else as text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--option={pair} has no value. Write --option=key=value.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    started = time.monotonic()
    counts = prepare(
        values.source, values.root, values.out, shards=values.shards, workers=values.workers, codec=values.codec,
        max_quarantined=values.max_quarantined, vocab_size=values.vocab_size, options=parse_options(values.option),
        bits=int(values.bits), **{name: values[name].value for name in _PREPROCESSING_FLAGS},
    )
    seconds = round(time.monotonic() - started, 2)
    print(summary(values.out, counts, seconds))
    command.write_json(values.json, counts | {"seconds": seconds, "out": values.out})
    return 0


_PREPROCESSING_FLAGS = ("geometry", "height", "width", "intensity", "crop")
_SHOWN = 5


def summary(out: Path | str, counts: dict, seconds: float) -> str:
    """What the command prints: the counts, and what was quarantined and why."""
    head = "was finished before, with the same parameters" if counts["up_to_date"] else f"is ready, in {seconds:.1f} s"
    lines = [f"{out} {head}"]
    lines += [f"  {counts[name]:>8}  {name}" for name in ("images", "studies", "patients", "boxes", "texts")]
    lines += [f"  {number:>8}  images in split {split}" for split, number in counts["splits"].items()]
    lines += [f"  {counts['quarantined']:>8}  quarantined, of {counts['images_in']}"]
    lines += [f"  {number:>8}    {reason}" for reason, number in counts["reasons"].items()]
    private = private_folder(Path(out)) / "quarantine.csv"
    table = private if private.is_file() else Path(out) / "quarantine.csv"
    if counts["quarantined"]:
        with open(table, newline="") as file:
            named = [row for row in csv.DictReader(file) if row["stage"] != "absent"]
        lines += [f"  {row['file'] or row['image']}: {row['reason']}; {row['remedy']}" for row in named[:_SHOWN]]
        lines += [f"  the whole list is in {table}"]
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    command.run(main)
