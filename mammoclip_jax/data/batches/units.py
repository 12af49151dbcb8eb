"""What a breast and an exam are, and which images stand for one: the same in training, evaluation and prediction."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

UNITS = {"image": 1, "breast": 2, "exam": 4}  # and the places for views that a model has of it
SCREENING = tuple((side, view) for side in "LR" for view in ("CC", "MLO"))
# Flags of what is no screening view.
NOT_SCREENING = (
    "other_modality",
    "for_processing",
    "specimen",
    "stereotactic",
    "recombined",
    "spot",
    "magnification",
    "implant_displaced",
)
# From best to worst: they count where no better image of the same view is there.
STAND_INS = ("", "synthetic_2d", "tomosynthesis", "secondary_capture")
VIEWS = ("CC", "MLO", "")  # before all others, which come by name; "" where the data set does not say


def breasts(rows: pd.DataFrame) -> np.ndarray:
    """Int [n]: number of the breast (data set, patient, study, laterality) of each row, in order of first appearance.

    An image of unknown laterality is a breast of its own: guessing could join the two sides.
    """
    side = np.where(rows["laterality"].isin(["L", "R"]), rows["laterality"], "?" + rows["image"].astype(str))
    keys = rows[["dataset", "patient", "study"]].astype(str).assign(side=side)
    return keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()


def exams(rows: pd.DataFrame) -> np.ndarray:
    """Int [n]: number of the exam (data set, patient, study) of each row, in order of first appearance."""
    return rows.groupby([rows[c].astype(str) for c in ("dataset", "patient", "study")], sort=False).ngroup().to_numpy()


GROUPS = {"image": lambda rows: np.arange(len(rows)), "breast": breasts, "exam": exams}


def members(groups: np.ndarray) -> Iterator[list[int]]:
    """The places of each group's members, in order, of int [n] groups numbered from 0 without a gap."""
    order = np.argsort(groups, kind="stable").tolist()
    ends = np.cumsum(np.bincount(groups)).tolist()
    return (order[start:end] for start, end in zip([0, *ends], ends))


class View(NamedTuple):
    """What is known of an image."""

    laterality: str  # "" where it is not known, as `view`
    view: str
    flags: tuple[str, ...] = ()


def views(rows: pd.DataFrame) -> list[View]:
    """Of the rows of an index."""
    flags = rows["flags"].tolist() if "flags" in rows else [""] * len(rows)
    facts = list(zip(rows["laterality"].tolist(), rows["view"].tolist(), flags, strict=True))
    made = {  # few differ
        (side, view, names): View(side, view, tuple(filter(None, names.split(",")))) for side, view, names in set(facts)
    }
    return [made[fact] for fact in facts]


def not_screening(images: Sequence[View]) -> list[str]:
    """Why each of an exam's images is no screening view of it; "" for those that are. One of unknown view may be one."""
    reasons = [_reason(image) for image in images]
    best: dict[tuple, int] = {}
    for image, reason in zip(images, reasons):
        for named in () if reason else (image[:2], ()):  # (): any of the exam
            best[named] = min(_rank(image), best.get(named, len(STAND_INS)))
    for place, image in enumerate(images):
        if not reasons[place] and _rank(image) > best[image[:2] if all(image[:2]) else ()]:
            reasons[place] = f"{STAND_INS[_rank(image)]} beside a better image of the view"
    return reasons


def _reason(image: View) -> str:
    flag = next((flag for flag in NOT_SCREENING if flag in image.flags), "")
    return flag or ("" if image.view in ("CC", "MLO", "") else f"view {image.view}")


def _rank(image: View) -> int:
    return max((STAND_INS.index(flag) for flag in image.flags if flag in STAND_INS), default=0)


def missing(images: Iterable[View]) -> list[str]:
    """Those of the four screening views that none of an exam's images is known to be, such as "R MLO"."""
    known = {image[:2] for image in images}
    return [" ".join(view) for view in SCREENING if view not in known]


def standing(
    images: Sequence[View], count: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the images of a unit take its `count` places: its screening views, or all where it has none.

    The four standard views come first, then those of unknown side or view, then further images of a view that has one
    already, from each side in turn. Of several images of a view the first is taken; with `rng` any, as training does.

    Returns:
        int [count] places in `images`, and bool [count], False where there is none: that place repeats another.
    """
    usable = [place for place, reason in enumerate(not_screening(images)) if not reason] or list(range(len(images)))
    turns: Counter = Counter()
    by_side: dict[str, list] = {}
    for place in usable if rng is None else map(int, rng.permutation(usable)):
        side, view, _ = images[place]
        known = VIEWS.index(view) if view in VIEWS else len(VIEWS)
        by_side.setdefault(side, []).append((turns[side, view], known, view, place))
        turns[side, view] += 1
    ranked = []
    for side, own in by_side.items():
        for rank, (turn, _, view, place) in enumerate(sorted(own)):
            standard = turn == 0 and (side, view) in SCREENING
            ranked.append((not standard, rank, side not in ("L", "R"), side, place))
    chosen = [place for *_, place in sorted(ranked)][:count]
    return np.resize(chosen, count), np.arange(count) < len(chosen)


def by_view(rows: Sequence[int], views: Sequence[str], other_views: bool) -> tuple[tuple[int, ...], ...]:
    """The rows of a breast by their views, as `VIEWS` has them, then others by name."""
    others = sorted(set(views) - set(VIEWS)) if other_views else []
    return tuple(filter(None, by_slot(rows, views, (*VIEWS, *others))))


def draw_views(views: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> list[int]:
    """Choose `count` images of a breast: first one of each view, then unused ones, and only then again the same.

    Views come in random order and images at random among their view's.
    """
    views = [rng.permutation(views[i]) for i in rng.permutation(len(views))]
    rounds = range(max(len(v) for v in views))
    turns = [int(view[i]) for i in rounds for view in views if i < len(view)]
    return [turns[i % len(turns)] for i in range(count)]


# --- named slots -----------------------------------------------------------------------------------------------------


def by_slot(rows: Sequence[int], views: Sequence[str], slots: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The rows of each slot's view; () where the breast has none of these views."""
    found = tuple([tuple([row for row, own in zip(rows, views) if own == view]) for view in slots])
    return found if any(found) else ()


def draw_slots(views: Sequence[Sequence[int]], rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """One image of each slot's view, and bool [V], False where there is none: that slot repeats the first that is."""
    drawn = [int(rng.choice(rows)) if len(rows) else None for rows in views]
    there = np.array([row is not None for row in drawn])
    first = drawn[int(there.argmax())]
    return [first if row is None else row for row in drawn], there


class Partner(NamedTuple):
    """With which probability an image's partner is what. MaMA (Du et al., arXiv 2409.18119): same_view .5, exam .5."""

    same_view: float = 0.0  # the image itself, varied once more
    same_side: float = 0.0  # another image of the same breast
    exam: float = 0.0  # any other image of the exam, of either side


def partner(policy: Mapping[str, float]) -> Partner | None:
    """The `Partner` of `config.data.partner`; None where all its probabilities are 0.

    Raises:
        UserError: there is no such partner, or the probabilities do not add up to 1.
    """
    for name in policy:
        check_name(name, Partner._fields, "partner in config.data.partner")
    found = Partner(**{name: float(chance) for name, chance in policy.items()})
    if not any(found):
        return None
    if min(found) < 0 or abs(sum(found) - 1) > 1e-6:
        listed = ", ".join(f"{name}={chance:g}" for name, chance in found._asdict().items())
        raise UserError(
            f"config.data.partner has {listed}: probabilities are 0 or more, and add up to 1 (or are all 0: "
            "no partners)."
        )
    return found


def draw_pair(breasts: Sequence[Sequence[int]], policy: Partner, rng: np.random.Generator) -> list[int]:
    """Any image of an exam, all alike, and its partner; where the exam has none of the kind drawn, the image itself.

    Args:
        breasts: the images (rows) of each breast of the exam.
    """
    side, first = _images(breasts)[rng.integers(sum(map(len, breasts)))]
    others = _others(breasts, side, first)[rng.choice(len(policy), p=np.array(policy) / sum(policy))]
    return [first, int(rng.choice(others)) if others else first]


def without_partner(breasts: Sequence[Sequence[int]], policy: Partner) -> float:
    """The probability that `draw_pair` gives an image itself although another one was to be its partner."""
    images = _images(breasts)
    missing = [[not others for others in _others(breasts, side, row)] for side, row in images]
    return float((np.array(missing) * (policy._replace(same_view=0.0))).sum() / len(images))


def _images(breasts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(side, row) for side, rows in enumerate(breasts) for row in rows]


def _others(breasts: Sequence[Sequence[int]], side: int, first: int) -> tuple[list[int], ...]:
    """What may be the partner of an image, by the fields of `Partner`."""
    exam = [row for rows in breasts for row in rows if row != first]
    return [first], [row for row in breasts[side] if row != first], exam
