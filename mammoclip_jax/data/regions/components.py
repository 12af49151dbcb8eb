"""Connected parts of masks as regions."""

from collections.abc import Sequence

import cv2
import numpy as np

from mammoclip_jax.data.regions.found import Found, by_size
from mammoclip_jax.data.text.label_values import PRESENT
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

LEAST, MOST = 0.005, 0.5  # of the canvas' longer side: smaller parts are specks, larger ones no lesion
LIMIT = 64


def of_findings(known: Sequence[str], wanted: Sequence[str] | str, of: str) -> tuple[str, ...]:
    """The `wanted` of the `known` names of masks, a list or with commas; without any those that are findings.

    Raises:
        UserError: there is no such name, or none is a finding; `of` says whose they are.
    """
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    for name in wanted:
        check_name(name, known, f"channel of the {of}")
    chosen = tuple(wanted) or tuple(name for name in known if name in PRESENT)
    if not chosen:
        raise UserError(
            f"no channel of the {of} is a finding: name those that are regions with --option=channels, of "
            f"{', '.join(known)}."
        )
    return chosen


def components(
    masks: np.ndarray,
    names: Sequence[str],
    *,
    scores: np.ndarray | None = None,
    least: float = LEAST,
    most: float = MOST,
    limit: int = LIMIT,
) -> Found:
    """A region for each connected part of each mask: the box around it. Parts that meet at a corner are one.

    Args:
        masks: bool [H, W, K].
        names: the labels of the K masks.
        scores: [H, W, K] in [0, 1]; a region's is the mean in its part. None: 1.
        least, most: bounds of a region's side, the root of its box's area, as parts of the canvas' longer side.
        limit: regions of an image, those of the highest score.
    """
    found, values, labels = [], [], []
    for channel, name in enumerate(names):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(masks[..., channel].astype(np.uint8), connectivity=8)
        left, top, width, height, pixels = stats[1:].T  # the first is the background
        found.append(np.stack([left, top, left + width, top + height], axis=1))
        if scores is None:
            values.append(np.ones(count - 1))
        else:
            sums = np.bincount(parts.ravel(), weights=scores[..., channel].ravel().astype(np.float64), minlength=count)
            values.append(sums[1:] / pixels)
        labels += [name] * (count - 1)
    boxes = np.concatenate(found or [np.zeros((0, 4))]).astype(np.float32)
    score = np.concatenate(values or [np.zeros(0)]).astype(np.float32)
    fits = by_size(boxes, least, most, masks.shape[:2])
    places = np.flatnonzero(fits)
    places = places[np.argsort(-score[places], kind="stable")]
    dropped = {"too small or too large": int((~fits).sum()), "more than the limit": max(len(places) - limit, 0)}
    places = places[:limit]
    return Found(boxes[places], score[places], [labels[place] for place in places], dropped=dropped)
