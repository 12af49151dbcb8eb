"""Pseudo-labels: a dual encoder says which concept of a lexicon a region shows (RegionCLIP, arXiv:2112.09106).

Only concepts that the labels of the image do not deny are looked at, and an image of which no label is known gets
neither labels nor cosines: what RegionCLIP, which has no labels, leaves to a threshold alone.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mammoclip_jax.data.regions.found import Found, Method
from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.data.text import concepts as lexicons
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import prompts
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.region_methods import weights

THRESHOLD = 0.1  # of the probability, as released (CONCEPT_THRES)
BELOW, UNKNOWN = "below the threshold", "no known label of the image allows a concept"


class Labelled(NamedTuple):
    """What the teacher says of n regions."""

    concept: np.ndarray  # int [n], -1 where it is not sure
    score: np.ndarray  # float32 [n], the probability of the likeliest allowed concept, 0 where none is


def teacher(
    dataset,
    *,
    model: DualEncoder,
    regions: str,
    concepts: str,
    temperature: float = 0.0,
    threshold: float = THRESHOLD,
    context: float = 2.0,
) -> Method:
    """The regions of another table, each with the cosines of its vector to all concepts, and its pseudo-label.

    A region's vector is that of a head of kind regions, else of what is cut out around it, enlarged to an image. A
    label that the other table gave narrows the concepts to those of its finding. The weights are averages (EMA) where
    their run kept them: what opening a checkpoint gives.

    Args:
        regions: name of the data set's table of regions.
        concepts: a lexicon, see data/text/concepts.py.
        temperature: of the softmax over the allowed concepts; 0: that which the model learnt for images and texts.
        threshold: a region whose likeliest concept is less likely keeps no label.
        context: sides of what is cut out, in those of the box; where there is no head of regions.

    Raises:
        UserError: the model is no dual encoder or sees other images, or there is no such table or lexicon.
    """
    weights.check(model, dataset, "dual_encoder", "teacher")
    if temperature < 0 or not 0 <= threshold < 1:
        raise UserError(f"temperature={temperature} must be 0 or more, threshold={threshold} from 0 to below 1.")
    table, lexicon = tables.read(dataset.path, regions), lexicons.load(concepts)
    texts = prompts.class_bank(model, {"": {concept.name: concept.prompts for concept in lexicon}})[""][1]
    heat = temperature or 1 / model.logit_scale
    by_row = dict(list(table.frame.groupby("row")))
    space = max((len(own) for own in by_row.values()), default=0)  # for as many in each image: one program
    head = getattr(model, "region_heads", ())

    def find(rows, images):
        own = [by_row.get(row, table.frame[:0]) for row in rows]
        boxes = np.zeros((len(rows), space, 4), np.float32)
        for place, frame in enumerate(own):
            boxes[place, : len(frame)] = frame[list(tables.BOX)]
        if not space:
            cosines = np.zeros((len(rows), 0, len(lexicon)), np.float32)
        else:
            vectors = model.embed_regions(images, boxes) if head else model.embed_crops(images, boxes, context)
            cosines = np.asarray(vectors @ texts.T, np.float32)
        return [
            _found(frame, near[: len(frame)], _allowed(lexicon, dataset.index.iloc[row], frame["label"]))
            for row, frame, near in zip(rows, own, cosines, strict=True)
        ]

    def _found(frame: pd.DataFrame, cosines, allowed) -> Found:
        said = pseudo_labels(cosines, allowed, heat, threshold)
        known = allowed.any(axis=1)
        return Found(
            frame[list(tables.BOX)].to_numpy(np.float32),
            said.score,
            [lexicon[place].name if place >= 0 else "" for place in said.concept],
            [near if there else None for near, there in zip(cosines, known, strict=True)],
            unlabelled={BELOW: int((known & (said.concept < 0)).sum()), UNKNOWN: int((~known).sum())},
        )

    options: dict[str, Any] = {"temperature": heat, "threshold": threshold, "space": head[0] if head else "crops"}
    options |= {} if head else {"context": context}
    return Method(
        find,
        {
            "method": "teacher",
            "options": options,
            "weights": weights.depends(model),
            "regions": {key: table.info[key] for key in ("name", "sha256")},
            "concepts": {"lexicon": concepts, "names": [c.name for c in lexicon], "sha256": _hash(lexicon)},
        },
    )


def pseudo_labels(
    cosines: Float[np.ndarray, "n C"], allowed: Bool[np.ndarray, "n C"], temperature: float, threshold: float
) -> Labelled:
    """The likeliest allowed concept of each region, by softmax(cosine / temperature) over those; -1 up to the threshold.

    As `losses.regions.pseudo_labels` says of the same cosines in training.
    """
    known = allowed.any(axis=1)
    scaled = np.where(allowed, cosines.astype(np.float64) / temperature, -np.inf)
    scaled -= np.where(known, scaled.max(axis=1, initial=-np.inf), 0)[:, None]
    likely = np.exp(scaled)
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), 1e-300)
    score = likely.max(axis=1, initial=0)
    return Labelled(np.where(known & (score > threshold), likely.argmax(axis=1), -1), score.astype(np.float32))


def _allowed(lexicon, row: pd.Series, labels) -> Bool[np.ndarray, "n C"]:
    """Concepts that neither the labels and boxes of an image nor the label that a region has deny."""
    given = json.loads(row["labels"])
    image = lexicons.allowed(lexicon, given, json.loads(row["boxes_canvas"]))
    rows = [
        image & lexicons.of_box(lexicon, {"labels": label.split(", ")}, given) if label else image for label in labels
    ]
    return np.array(rows, bool).reshape(-1, len(lexicon))


def _hash(lexicon) -> str:
    return hashlib.sha256(json.dumps([list(concept) for concept in lexicon]).encode()).hexdigest()
