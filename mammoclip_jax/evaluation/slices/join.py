"""The same images in two data set folders, prepared for two models."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError

_KEY = ["dataset", "image"]


class Joined(NamedTuple):
    """Rows of two indexes that are the same image.

    Attributes:
        first, second: int [n], positions in the one and the other index; those of the first rise.
        counts: joined, only_first, only_second: images.
    """

    first: np.ndarray
    second: np.ndarray
    counts: dict[str, int]


def joined(first: pd.DataFrame, second: pd.DataFrame) -> Joined:
    """The images that both indexes of data sets (data/manifest.py) have, by data set and image.

    Raises:
        UserError: an index has an image twice, they have none in common, or say of one that it is of two patients.
    """
    places = []
    for index in (first, second):
        keys = pd.MultiIndex.from_frame(index[_KEY].astype(str))
        if keys.has_duplicates:
            raise UserError(
                f"the image {'/'.join(keys[keys.duplicated()][0])} is twice in one data set: prepare it anew."
            )
        places.append(pd.Series(np.arange(len(index)), index=keys))
    both = pd.concat(places, axis=1, join="inner", keys=["first", "second"]).sort_values("first")
    if both.empty:
        raise UserError(
            "the two data sets have no image in common, so their features cannot be joined: prepare the same source for "
            "both, a private one with the same --key, so that its images keep their names."
        )
    left, right = both["first"].to_numpy(), both["second"].to_numpy()
    of_first, of_second = (
        index["patient"].astype(str).to_numpy()[rows] for index, rows in ((first, left), (second, right))
    )
    if (of_first != of_second).any():
        image = "/".join(both.index[(of_first != of_second).argmax()])
        raise UserError(f"the two data sets say of {image} that it is of two patients: they are of different sources.")
    counts = {"joined": len(both), "only_first": len(first) - len(both), "only_second": len(second) - len(both)}
    return Joined(left, right, counts)
