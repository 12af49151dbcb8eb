"""Measures on phantoms what turning MLO views upright and one scale for both views of a breast do: docs/data.md has it.

    python tests/data/measure_upright.py --exams=200

Phantoms are made with the depth in MLO perpendicular to the muscle, and with it along image rows; each set is prepared
four ways. A lesion's column is its place between chest wall and nipple, of nine on the canvas.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from absl import app, flags

from mammoclip_jax.data import manifest
from mammoclip_jax.data.build import build
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.sources.phantom import read, read_muscles
from mammoclip_jax.data.store.shards import Dataset

COLUMNS = 9
WAYS = [dict(upright=upright, scale=scale) for upright in (False, True) for scale in ("image", "breast")]


def prepared(root: Path, out: Path, height: int = 192, width: int = 128, workers: int = 1, **way) -> pd.DataFrame:
    """The index of the phantoms in `root`, prepared."""
    build(read(root), root, out, preprocessing=Preprocessing(height=height, width=width, **way), workers=workers)
    return Dataset.open(out).index


def angles(index: pd.DataFrame, root: Path) -> np.ndarray:
    """Degrees [n] by which the turn of each MLO view differs from its muscle's true angle; NaN of one not turned."""
    turns = {row.image: abs(Transform.from_json(row.transform).rotation) or np.nan for row in index.itertuples()}
    return np.array([abs(turns[row.image] - row.angle) for row in read_muscles(root).itertuples()])


def columns(index: pd.DataFrame) -> np.ndarray:
    """Place [n, 2] of each lesion between the canvas's sides in CC and in MLO, from 0 to `COLUMNS`."""
    found = []
    for _, rows in index.groupby(manifest.breast_keys(index), sort=False):
        views = {row.view: row for row in rows.itertuples()}
        for boxes in zip(*(json.loads(views[view].boxes) for view in ("CC", "MLO"))):
            found.append(
                [
                    COLUMNS * _centre(views[view].transform, item["box"])[0] / views[view].width
                    for view, item in zip(("CC", "MLO"), boxes)
                ]
            )
    return np.array(found)


def _centre(transform: str, box: list[float]) -> np.ndarray:
    return Transform.from_json(transform).points(np.reshape(box, (2, 2)).mean(axis=0))[0]


def lines_in_cc(root: Path, out: Path, workers: int = 1) -> float:
    """The share of CC views in which a muscle's edge is found, told that they are MLO views."""
    table = read(root)
    rows = table.rows[table.rows["view"] == "CC"].assign(view="MLO")
    build(
        table._replace(rows=rows),
        root,
        out,
        preprocessing=Preprocessing(height=192, width=128, upright=True),
        workers=workers,
    )
    flags_of = Dataset.open(out).index["flags"].str.split(",")
    return float(np.mean(["upright" in found for found in flags_of]))


def agreement(places: np.ndarray) -> tuple[float, float]:
    """Correlation of the places in both views, and the share of lesions at most one column apart."""
    whole = np.floor(places)
    return float(np.corrcoef(places.T)[0, 1]), float(np.mean(np.abs(whole[:, 0] - whole[:, 1]) <= 1))


def main(argv) -> int:
    """Prints the table."""
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as scratch:
        for perpendicular in (True, False):
            root = Path(scratch, f"phantoms-{perpendicular}")
            phantom.generate(
                root,
                values.exams,
                Parameters(values.seed, values.height, values.width, perpendicular=perpendicular),
                values.workers,
            )
            share = lines_in_cc(root, Path(scratch, f"{perpendicular}-cc"), values.workers)
            print(
                f"depth in MLO {'perpendicular to the muscle' if perpendicular else 'along image rows'}; lines in CC "
                f"views {share:.3f}"
            )
            for number, way in enumerate(WAYS):
                index = prepared(root, Path(scratch, f"{perpendicular}-{number}"), workers=values.workers, **way)
                correlation, near = agreement(places := columns(index))
                line = f"  {way}: {len(places)} lesions, correlation {correlation:.3f}, within one column {near:.3f}"
                if way["upright"]:
                    off = angles(index, root)
                    lost = index["flags"].str.contains("box_outside_crop").sum()
                    line += (
                        f"; {len(off)} MLO views, turned {np.isfinite(off).mean():.3f}, within 5 degrees "
                        f"{np.mean(off <= 5):.3f}, median {np.nanmedian(off):.2f}; images with a lost box {lost}"
                    )
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("exams", 200, "Exams of each set.")
    flags.DEFINE_integer("seed", 0, "Of the phantoms.")
    flags.DEFINE_integer("height", 320, "Rows of a phantom image.")
    flags.DEFINE_integer("width", 256, "Its columns.")
    flags.DEFINE_integer("workers", 2, "Processes.")
    app.run(lambda argv: sys.exit(main(argv)))
