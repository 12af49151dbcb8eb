"""How the views of an exam hang in a reading room: the patient's right breast at the viewer's left, chest walls together in
the middle, CC above MLO, other views below."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mammoclip_jax.data.pixels.render import SIDES

ROWS = ("CC", "MLO")  # from above; then other views by name, then those whose view is not known
_OTHER = {"left": "right", "right": "left", "": ""}


class Standing(NamedTuple):
    """What is known of an image that is to hang."""

    laterality: str  # "L", "R" or "" unknown
    view: str  # "CC", "MLO", another one, or "" unknown
    chest_wall: str  # where it lies in the image: "left", "right" or "" unknown


class Hung(NamedTuple):
    """An image in its place."""

    place: int  # among the images that were given
    mirrored: bool  # whether it is shown mirrored, so that its chest wall lies in the middle


class Row(NamedTuple):
    """Images beside each other."""

    view: str
    left: Hung | None  # at the viewer's left: of the right breast
    right: Hung | None


def hang(views: Iterable[Standing | Sequence[str]]) -> list[Row]:
    """Rows from above of all `views`, each of which hangs once.

    A second image of a side and view hangs in a row below the first. Images of unknown side fill rows of their own behind
    the others, from the left, and are never mirrored.
    """
    by_view: dict[str, dict[str, list[Hung]]] = {}
    unknown: list[Hung] = []
    for place, (side, view, chest_wall) in enumerate(views):
        if side not in ("L", "R"):
            unknown.append(Hung(place, False))
            continue
        hung = Hung(place, chest_wall == _OTHER[SIDES[side]])
        by_view.setdefault(view, {"L": [], "R": []})[side].append(hung)
    rows = []
    for view in sorted(by_view, key=lambda view: (ROWS.index(view) if view in ROWS else len(ROWS), not view, view)):
        left, right = by_view[view]["R"], by_view[view]["L"]
        rows += [Row(view, *pair) for pair in _pairs(left, right)]
    return rows + [Row("", *pair) for pair in _pairs(unknown[::2], unknown[1::2])]


def _pairs(left: list[Hung], right: list[Hung]) -> list[tuple[Hung | None, Hung | None]]:
    longest = max(len(left), len(right))
    fill = [[*side, *[None] * (longest - len(side))] for side in (left, right)]
    return list(zip(*fill, strict=True))


def chest_wall(preprocessing: Mapping[str, Any], laterality: str, flags: Iterable[str] = ()) -> str:
    """Where the chest wall lies on a canvas (data/pixels/render.py): "left", "right", or "" of a chest or unknown.

    Args:
        preprocessing: as in dataset.json.
        flags: of the image; where pixels, and no header, show the wall at the other side, it stays there.
    """
    if preprocessing.get("chest_wall") == "centre":
        return ""
    if preprocessing.get("geometry", "fit") == "fit" and preprocessing.get("chest_wall", "left") == "left":
        return "left"
    side = SIDES.get(laterality, "")
    return _OTHER[side] if "chest_wall_unexpected" in flags else side


def in_original(wall: str, mirrored: bool) -> str:
    """The same side in the original image, of which the canvas was `mirrored` or not."""
    return _OTHER[wall] if mirrored else wall
