"""Compares the package with the files of a folder like ../shared/fixtures, any subset of them.

    python tests/check_fixtures.py FOLDER

Prints the largest difference of each array in float64 and in float32, over 1 and 8 simulated devices, and last
`N compared, M beyond tolerance`: arrays. Exit status 0 only where M is 0 and N is not.
"""

import importlib
import os
import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
# As tests/conftest.py: many small programs, each run a few times.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
import numpy as np
from fixture_checks import FILES, Difference, Fixture, compare

from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import make_mesh

DEVICES = (1, 8)


def check(path: Path) -> list[Difference]:
    """Of every array of a file that the package computes, in both precisions; by name, then precision."""
    module = importlib.import_module(f"fixture_checks.{FILES[path.name]}")
    found = []
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            fixture = Fixture(path, dtype)
            for devices in DEVICES:
                mesh = make_mesh({"data": -1}, jax.devices()[:devices])
                found += compare(module, fixture, module.values(fixture, mesh))
    # Of several devices the worst: the least distance from a defective value, the greatest from others.
    by_array = {}
    for one in found:
        kept = by_array.get((one.array, one.precision))
        further = kept is None or not (one.largest >= kept.largest if one.must_differ else one.largest <= kept.largest)
        by_array[one.array, one.precision] = one if further else kept
    return sorted(by_array.values(), key=lambda one: one.array)


def main(folder: str) -> int:
    paths = [path for name in FILES if (path := Path(folder, name)).exists()]
    compared = beyond = 0
    for path in paths:
        print(path)
        for _, group in groupby(check(path), key=lambda one: one.array):
            group = list(group)
            wrong = any(one.beyond for one in group)
            print("  " + "; ".join(map(str, group)) + ("  BEYOND" if wrong else ""))
            compared, beyond = compared + 1, beyond + wrong
    print(f"{compared} compared, {beyond} beyond tolerance")
    return 0 if compared and not beyond else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    try:
        sys.exit(main(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
