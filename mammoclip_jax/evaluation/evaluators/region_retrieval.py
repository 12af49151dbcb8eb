"""Regions by phrase and phrases by region: the sentences of reports that speak of one box, and the boxes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import phrases
from mammoclip_jax.data.text import concepts
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets, statistics
from mammoclip_jax.evaluation.evaluators.retrieval import merge, ranks
from mammoclip_jax.evaluation.evaluators.saliency import CARRIED
from mammoclip_jax.evaluation.features import Features, first_rows, select
from mammoclip_jax.evaluation.metrics import ranking
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference import overlay
from mammoclip_jax.names import check_name

WAYS = ("phrase_to_region", "region_to_phrase")
LEVELS = phrases.LEVELS[:2]  # a report speaks of no single region
_SIDE = 480  # pixels of a picture's longer side


class Pairs(NamedTuple):
    """Distinct phrases, regions that some phrase speaks of, and which speaks of which."""

    texts: list[str]  # P
    regions: pd.DataFrame  # R rows with position and box; label: the findings of the box
    speaks: np.ndarray  # bool [P, R]
    said: np.ndarray  # int [P]: the region where a phrase occurs first


def region_retrieval(
    model,
    dataset,
    *,
    split: str = "test",
    levels: Sequence[str] = ("phrase",),
    ks: tuple[int, ...] = (1, 5, 10),
    vectors: str | None = None,
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Recall@k and ranks both ways, and how often the first k agree with the query in the finding.

    Args:
        levels: of `data.batches.phrases.units`: "phrase", sentences of the texts that name the finding of one box alone;
            "label", the findings' names.
        vectors: of `region_sets.IN_TEXT_SPACE`; None: those of the model's head of regions, without one of places.
        gallery: pictures of phrases, drawn by `seed`, with the region that comes first.

    Metrics: "phrase_to_region/recall@1", "…/median_rank", "…/mean_rank", "region_to_phrase/…", beside "…/chance@1",
    "…/chance_rank"; "phrase_to_region/finding/precision@1", "region_to_phrase/…" beside "…/precision_chance".

    Raises:
        UserError: an unknown level or kind of vectors, or a k below 1.
    """
    for level in levels:
        check_name(level, LEVELS, "level of phrases of a region")
    if min(ks) < 1:
        raise UserError(f"region_retrieval takes ks from 1 on, not ks={tuple(ks)}.")
    kind = region_sets.kind_of(model, vectors)
    positions = select(dataset.index, split, patients, seed)
    pairs = _pairs(dataset.index, positions, levels)
    protocol = _protocol(split, levels, kind, pairs)
    if not pairs.texts:
        nothing = statistics.entry(None, n=0, reason="no phrase speaks of a box")
        return Result("region_retrieval", protocol, {f"{way}/recall@{k}": nothing for way in WAYS for k in ks})
    features = features or Features(model, dataset)
    of_regions = region_sets.vectors(model, dataset, pairs.regions, kind)
    of_texts = features.texts.embed_text(pairs.texts)
    patient = dataset.index["patient"].astype(str).to_numpy()[pairs.regions["position"]]
    owner, classes = pd.factorize(patient)[0], pd.factorize(pairs.regions["label"])[0]
    sides = {  # queries, items, which are right; patient, class and owner of the queries, class and owner of the items
        "phrase_to_region": (of_texts, of_regions, pairs.speaks, pairs.said, np.arange(len(owner))),
        "region_to_phrase": (of_regions, of_texts, pairs.speaks.T, np.arange(len(owner)), pairs.said),
    }
    options = {"resamples": resamples, "seed": seed}
    metrics = {}
    for way, (queries, items, right, asks, answers) in sides.items():
        stands = ranking.standing_of(queries, items, lambda rows, right=right: right[rows])
        metrics |= {
            f"{way}/{name}": entry for name, entry in ranks(stands, len(items), patient[asks], ks, **options).items()
        }
        precision, chance = ranking.agreement(
            queries, items, classes[asks], classes[answers], owner[asks], owner[answers], tuple(ks)
        )
        some = ~np.isnan(chance)
        for k, column in zip(ks, precision.T):
            metrics[f"{way}/finding/precision@{k}"] = statistics.mean(column[some], patient[asks][some], **options)
        value = chance[some].mean() if some.any() else None
        metrics[f"{way}/finding/precision_chance"] = statistics.entry(value, n=int(some.sum()))
    figures, shown = _pictures(dataset, pairs, of_texts @ of_regions.T, gallery, seed)
    counts = pd.DataFrame(
        [{"phrases": len(pairs.texts), "regions": len(pairs.regions), "pairs": int(pairs.speaks.sum())}]
    )
    return Result("region_retrieval", protocol, metrics, {"counts": counts, "pictures": shown}, figures)


def _pairs(index: pd.DataFrame, positions: Sequence[int], levels: Sequence[str]) -> Pairs:
    texts, places, rows, number = [], [], [], {}
    for position in map(int, positions):
        row = index.iloc[position]
        found = {tuple(item["box"]): set() for item in json.loads(row["boxes_canvas"])}
        for item in json.loads(row["boxes_canvas"]):
            found[tuple(item["box"])] |= concepts.findings_of(item)
        for unit in phrases.units(row.to_dict() | {"boxes": row["boxes_canvas"]}):  # so that units lie on the canvas
            if unit.level in levels and unit.box is not None and not unit.negated:
                if (position, unit.box) not in number:
                    number[position, unit.box] = len(rows)
                    rows.append((position, ", ".join(sorted(found[unit.box])), *unit.box))
                texts.append(unit.text)
                places.append(number[position, unit.box])
    regions = pd.DataFrame(rows, columns=["position", "label", *region_sets.BOX])
    if not texts:
        return Pairs([], regions, np.zeros((0, 0), bool), np.zeros(0, int))
    distinct, of = merge(texts)
    speaks = np.zeros((len(distinct), len(rows)), bool)
    speaks[of, places] = True
    return Pairs(distinct, regions, speaks, np.array(places)[first_rows(of)])


def _pictures(dataset, pairs: Pairs, similarity: np.ndarray, gallery: int, seed: int):
    """The image of the region that comes first for each of some phrases: that region in orange, those that the phrase
    speaks of in white."""
    boxes, figures, shown = pairs.regions[region_sets.BOX].to_numpy(float), {}, []
    for number, place in enumerate(np.random.default_rng(seed).permutation(len(pairs.texts))[:gallery]):
        best = int(similarity[place].argmax())
        position, name = int(pairs.regions["position"].iloc[best]), f"phrase_{number:03d}"
        truth = boxes[pairs.speaks[place] & (pairs.regions["position"] == position).to_numpy()]
        figures[name] = overlay.detections(
            dataset.read(position), truth, boxes[[best]], similarity[place, [best]], _SIDE
        )
        carried: Mapping[str, Any] = dataset.index.loc[dataset.index.index[position], list(CARRIED)].to_dict()
        asked = pairs.regions["label"].iloc[pairs.said[place]]
        note = {"boxes": len(truth), "found": int(pairs.speaks[place, best]), "phrase": pairs.texts[place]}
        shown.append({"figure": name, "label": asked} | carried | note)
    return figures, pd.DataFrame(shown)


def _protocol(split: str, levels: Sequence[str], kind: str, pairs: Pairs) -> str:
    of_level = {
        "phrase": "sentences of an image's texts that affirm the finding of one box alone",
        "label": "names of findings",
    }
    what = region_sets.IN_TEXT_SPACE[kind]
    return (
        f"Split {split}: boxes that a phrase speaks of ({len(pairs.regions)}), and the phrases "
        f"({', '.join(of_level[level] for level in levels)}; {len(pairs.texts)} that differ in more than case, white space and "
        f"stops). Regions by the vectors of {what}. Any region that a phrase speaks of is right for it, and any such phrase "
        "for the region. finding/precision@k: share of the k nearest, none of the query's own patient, that are of the "
        "findings of the query's box; precision_chance: share of all such. Ties are broken at random, in expectation. chance: "
        f"random order. Intervals: {statistics.INTERVAL} of the queries, with the gallery as it is."
    )
