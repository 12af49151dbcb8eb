"""Error slices as an entry to the exams: those that the command `slices` found, and which images are in them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.members import FILE, IDENTITY, SHARED


class Slice(NamedTuple):
    """One slice; `inside` and `wrong` bool [n] of the images of the index: who is in it, of its class alone, and whom the
    classifier decided wrongly of them."""

    title: str
    inside: np.ndarray
    wrong: np.ndarray


def of_folder(out: str | Path, index: pd.DataFrame, name: str) -> list[Slice]:
    """The slices in the folder that `slices --out` wrote, among the images of `index`.

    Raises:
        UserError: there are none, or none is of an image of the data set called `name`.
    """
    files = sorted(Path(out).rglob(FILE))
    if not files:
        raise UserError(
            f"{out} holds no {FILE}: name the folder that slices --out wrote; one of an older version is made anew, and "
            "one without any slice has none to enter by."
        )
    place = pd.Series(np.arange(len(index)), pd.MultiIndex.from_frame(index[list(IDENTITY)].astype(str)))
    found = []
    for file in files:
        table = pd.read_csv(file, dtype=dict.fromkeys(IDENTITY, str), keep_default_na=False)
        places = place.reindex(pd.MultiIndex.from_frame(table[list(IDENTITY)])).to_numpy()
        table, rows = table[~np.isnan(places)], places[~np.isnan(places)].astype(int)
        for title in [column for column in table if column not in SHARED]:
            inside, wrong = np.zeros(len(index), bool), np.zeros(len(index), bool)
            inside[rows] = table[title].astype(str) == "1"
            wrong[rows] = inside[rows] & (table["right"].astype(str) == "0").to_numpy()
            if inside.any():
                found.append(Slice(title, inside, wrong))
    if not found:
        raise UserError(f"the slices in {out} are of no image of {name}: name the data set that they were found in.")
    return found
