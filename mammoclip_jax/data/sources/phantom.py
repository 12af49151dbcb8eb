"""Phantom exams: makes a set of synthetic mammograms with reports, boxes and masks, and reads it as a data set.

Example, 300 exams (1200 images) in about a minute:

    python -m mammoclip_jax.data.sources.phantom --out=data/phantom --exams=300 --height=640 --width=512

The same parameters give the same bytes. Run again to complete an interrupted set, or with more --exams to grow it.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from absl import flags
from jaxtyping import Bool

from mammoclip_jax import command
from mammoclip_jax.data import manifest
from mammoclip_jax.data.manifest import MaskSource, SourceTable
from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.errors import UserError

LICENCE = "CC0-1.0"
CITATION = "Computer phantoms made by mammoclip_jax.data.phantom; no patients."
CHANNELS = ("breast", "pectoral_muscle", *exams.MASK_BITS)


def read(
    root: str | Path, test_fraction: float = 0.25, val_fraction: float = 0.0, pectoral_angle: bool = False
) -> SourceTable:
    """The phantom set in `root` as a manifest; texts are those of the image's breast, splits are by patient.

    All images have all masks of `CHANNELS`.

    With `pectoral_angle` the labels of an MLO image have the true angle of its muscle, in degrees to the vertical.

    Raises:
        UserError: `root` holds no complete phantom set, the fractions are not fractions, or they are not those of the
            set's shortcut.
    """
    if not (0 <= test_fraction and 0 <= val_fraction and test_fraction + val_fraction <= 1):
        raise UserError(
            f"test_fraction={test_fraction} and val_fraction={val_fraction} must be at least 0 and at most 1 together."
        )
    root = Path(root)
    description = phantom.read_description(root)
    held_out = description["parameters"].get("shortcut_held_out")
    if held_out is not None and not math.isclose(held_out, test_fraction + val_fraction):
        raise UserError(
            f"{root} has a shortcut outside which the share {held_out} of the patients is: "
            f"test_fraction={test_fraction} and val_fraction={val_fraction} must add up to that."
        )
    table = _table(root)
    rows = table.assign(dataset="phantom", real=False)
    rows["row"] = [f"{phantom.TABLE}:{number}" for number in range(len(rows))]
    if pectoral_angle:
        angles = dict(read_muscles(root)[["image", "angle"]].itertuples(index=False))
        rows["labels"] = [
            labels if image not in angles else json.dumps(json.loads(labels) | {"pectoral_angle": angles[image]})
            for image, labels in zip(rows["image"], rows["labels"])
        ]
    rows["split"] = [manifest.split_of(patient, val_fraction, test_fraction) for patient in rows["patient"]]
    masks = {row.image: [row.patient, row.laterality, row.view] for row in rows.itertuples()}
    return SourceTable(
        manifest.frame(rows.to_dict("records")),
        [],
        LICENCE,
        CITATION,
        public_ids=True,
        table_rows=len(rows),
        masks=MaskSource(CHANNELS, masks, read_masks),
    )


def read_masks(root: Path, view: Sequence[str], size: tuple[int, int]) -> Mapping[str, Bool[np.ndarray, "h w"]]:
    """The masks of a view [patient, laterality, view]: the breast with its muscle, the muscle, each kind of lesion.

    Calcifications are the hull of their specks, as people draw around a cluster. The borders are drawn again from the
    set's parameters: they are in no file.
    """
    patient, laterality, name = view
    parameters = Parameters(**phantom.read_description(root)["parameters"])
    exam = exams.draw(parameters, int(patient.rpartition("-")[2]))
    outline = exam.outline(laterality, name)
    columns = np.arange(outline.width) + 0.5
    turn = -1 if laterality == "R" else 1
    masks = {
        channel: (columns < edge[:, None])[:, ::turn]
        for channel, edge in (("breast", outline.edge), ("pectoral_muscle", outline.pectoral))
    }
    path = root / phantom.FOLDER / patient / f"{laterality}_{name}.mask.png"
    bits = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
    for channel, bit in exams.MASK_BITS.items():
        lesion = np.zeros(size, bool) if bits is None else bits & bit > 0
        masks[channel] = _hull(lesion) if channel == "calcification" else lesion
    return masks


def _hull(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    points = cv2.findNonZero(mask.astype(np.uint8))
    filled = np.zeros(mask.shape, np.uint8)
    return filled > 0 if points is None else cv2.fillConvexPoly(filled, cv2.convexHull(points), 1) > 0


def read_muscles(root: str | Path) -> pd.DataFrame:
    """image, angle (degrees to the vertical) and distance (pixels from the upper chest-wall corner) of each MLO image.

    Raises:
        UserError: the set is of an older version, or damaged.
    """
    path = Path(root) / phantom.PECTORAL
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): run the command that made the set again; it "
            "keeps the exams and writes this table."
        ) from None


def _table(root: Path) -> pd.DataFrame:
    path = root / phantom.TABLE
    try:
        return read_table(path)
    except FileNotFoundError:
        raise UserError(f"{root} is not complete: {path} is absent. {phantom.how_to_make(root)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run the command that made it.") from None


def _define_flags() -> None:
    default = Parameters()
    flags.DEFINE_string("out", None, "Folder to make.", required=True)
    flags.DEFINE_integer("exams", 300, "Number of exams, four images each.")
    flags.DEFINE_integer("height", default.height, "Rows of an image, up to 3518.")
    flags.DEFINE_integer("width", default.width, "Columns of an image, up to 2800.")
    flags.DEFINE_integer("seed", default.seed, "Everything random follows from it.")
    flags.DEFINE_float("contrast", default.contrast, "Contrast of the lesions: 1 is conspicuous, 0 invisible.")
    flags.DEFINE_bool(
        "perpendicular",
        default.perpendicular,
        "Depth in MLO at right angles to the pectoral muscle, as CC sees it, not along image rows.",
    )
    flags.DEFINE_string(
        "shortcut", default.shortcut, "mass or calcification: a ring on the skin tells of it in training."
    )
    flags.DEFINE_float("shortcut_share", default.shortcut_share, "Share of the training breasts where it does.")
    flags.DEFINE_float(
        "shortcut_held_out",
        default.shortcut_held_out,
        "Share of the patients where it tells nothing: test_fraction and val_fraction of `prepare` together.",
    )
    flags.DEFINE_integer("workers", 2, "Processes; the result does not depend on it.")


def main(argv) -> int:
    """The command; see --help."""
    values = flags.FLAGS
    names = ("seed", "height", "width", "contrast", "perpendicular", "shortcut", "shortcut_share", "shortcut_held_out")
    parameters = Parameters(**{name: getattr(values, name) for name in names})
    start = time.monotonic()
    try:
        made = phantom.generate(values.out, values.exams, parameters, values.workers, _progress)
    except OSError as error:
        raise UserError(f"cannot write to {values.out}: {error}. The finished exams are kept: mend this, run again.")
    seconds = time.monotonic() - start
    print(f"{values.out}: {values.exams} exams, {4 * values.exams} images; {made} exams made now in {seconds:.0f} s")
    return 0


def _progress(done: int, count: int) -> None:
    terminal = sys.stderr.isatty()
    if terminal or done == count or done % 50 == 0:
        start, end = ("\r", "" if done < count else "\n") if terminal else ("", "\n")
        print(f"{start}phantom exams {done}/{count}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    _define_flags()
    command.run(main)
