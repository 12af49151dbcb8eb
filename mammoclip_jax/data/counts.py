"""What a data set counts: its images and what they hold, and what went into quarantine by reason."""

import collections
import csv
import io
import json

import pandas as pd

from mammoclip_jax.data import leave_out
from mammoclip_jax.data.manifest import Problem, breast_keys


def quarantine_text(problems: list[Problem]) -> str:
    """quarantine.csv, or PASSED_OVER."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "image", "stage", "reason", "remedy", "row"])
    writer.writerows([p.file, p.image, p.stage, p.reason, p.remedy, p.row] for p in problems)
    return text.getvalue()


def counted(index: pd.DataFrame, problems: list[Problem], images_in: int) -> dict:
    """The counts of a finished set: images_in is images and quarantined together, whatever the reason."""
    counts = {
        "images_in": images_in,
        "images": len(index),
        "quarantined": len(problems),
        "absent": sum(problem.stage == "absent" for problem in problems),
        "left_out": sum(problem.stage == leave_out.STAGE for problem in problems),
        "reasons": kinds(problems),
    }
    if not len(index):
        return counts
    flags = collections.Counter(flag for flags in index["flags"] for flag in flags.split(",") if flag)
    return counts | content(index) | {"flags": dict(sorted(flags.items()))}


def content(rows: pd.DataFrame) -> dict:
    """studies, patients, boxes, texts and images per split of manifest or index rows."""
    breasts = pd.DataFrame({"breast": breast_keys(rows), "text": rows["texts"]}).explode("text").dropna()
    return {
        "studies": rows["study"].nunique(),
        "patients": rows["patient"].nunique(),
        "boxes": sum(len(json.loads(boxes)) for boxes in rows["boxes"].tolist() if boxes != "[]"),
        "texts": len(breasts.drop_duplicates()),
        "splits": rows["split"].value_counts().sort_index().to_dict(),
    }


def kinds(problems: list[Problem]) -> dict[str, int]:
    """Kind -> how many, in order of kind."""
    return dict(sorted(collections.Counter(problem.kind for problem in problems).items()))


def listed(problems: list[Problem]) -> str:
    """How many of each kind, the most frequent first."""
    numbers = sorted(kinds(problems).items(), key=lambda item: -item[1])
    return ", ".join(f"{number} {kind}" for kind, number in numbers)
