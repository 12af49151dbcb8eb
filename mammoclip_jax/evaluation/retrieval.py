"""Image↔text retrieval between breasts and their reports, with identical reports merged."""

import re

import numpy as np
import pandas as pd
from scipy.special import gammaln

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import (
    Features,
    aggregate,
    breasts,
    first_rows,
    select,
    unit,
)
from mammoclip_jax.evaluation.result import Result

_WAYS = ("image_to_text", "text_to_image")
_QUERIES = 1024          # rows of the similarity matrix in memory at a time
_SAME = 6                # decimals: cosines that agree in float32's own precision count as tied


def retrieval(model, dataset, *, split: str = "test", ks: tuple[int, ...] = (1, 5, 10), patients: int | None = None,
              resamples: int = statistics.RESAMPLES, seed: int = 0, features: Features | None = None) -> Result:
    """Recall@k and median rank both ways, with the recall of chance and of always answering the commonest reports.

    Metrics: "image_to_text/recall@1", "image_to_text/median_rank", "text_to_image/…"; "…/chance@1", "…/commonest@1".
    """
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    has_text = rows["texts"].map(len).to_numpy() > 0
    positions, rows = positions[has_text], rows[has_text].reset_index(drop=True)
    if len(rows) == 0:
        nothing = statistics.entry(None, n=0, reason="no image has a text")
        return Result("retrieval", _protocol(split), {f"{way}/recall@{k}": nothing for way in _WAYS for k in ks})
    group = breasts(rows)
    first = first_rows(group)
    images = unit(aggregate((features or Features(model, dataset)).images(positions), group, "mean"))
    texts, text_of = merge([str(t[0]) for t in rows["texts"].iloc[first]])
    embedded = np.asarray(model.embed_text(texts), dtype=np.float32)
    patient = rows["patient"].to_numpy()[first]
    # Merged texts are one text, so one query; it counts for the patient where it first occurs.
    text_patient = patient[first_rows(text_of)]
    relevant = {"image_to_text": text_of[:, None] == np.arange(len(texts)),
                "text_to_image": np.arange(len(texts))[:, None] == text_of}
    sides = {"image_to_text": (images, embedded, patient), "text_to_image": (embedded, images, text_patient)}
    metrics, table = {}, []
    for way, (queries, gallery, who) in sides.items():
        found = directed(queries, gallery, relevant[way], who, ks, resamples=resamples, seed=seed)
        if way == "image_to_text":
            found |= _commonest(text_of, patient, ks, resamples, seed)
        metrics |= {f"{way}/{name}": entry for name, entry in found.items()}
        table.append({"direction": way, "queries": len(queries), "gallery": len(gallery)} |
                     {name: entry["value"] for name, entry in found.items()})
    return Result("retrieval", _protocol(split), metrics, {"directions": pd.DataFrame(table)})


def merge(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts (case and white space aside) in order of appearance, and for each text which of them it is."""
    keys = [re.sub(r"\s+", " ", text).strip().lower() for text in texts]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of = np.array([number[key] for key in keys])
    return [texts[i] for i in first_rows(of)], of


def directed(queries, gallery, relevant, patients, ks, **options) -> dict[str, dict]:
    """Metrics of one direction.

    queries [Q, D], gallery [G, D] unit norm; relevant bool [Q, G], at least one a row; patients [Q], to be resampled.
    """
    parts = [_standing(queries[s:s + _QUERIES] @ gallery.T, relevant[s:s + _QUERIES])
             for s in range(0, len(queries), _QUERIES)]
    above, tied_wrong, tied_right = (np.concatenate(part) for part in zip(*parts))
    right = relevant.sum(1)
    metrics = {}
    for k in ks:
        metrics[f"recall@{k}"] = statistics.mean(hit(k, above, tied_wrong, tied_right), patients, **options)
        chance = hit(k, np.zeros_like(right), len(gallery) - right, right)
        metrics[f"chance@{k}"] = statistics.entry(chance.mean(), n=len(queries))
    rank = above + (tied_wrong + tied_right + 1) / (tied_right + 1)
    metrics["median_rank"] = statistics.median(rank, patients, **options)
    return metrics


def _standing(similarity: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query: the wrong items above the best right one, and the wrong and the right ones that tie with it."""
    similarity = np.round(similarity.astype(np.float64), _SAME)
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    tied = similarity == best
    return (similarity > best).sum(1), (tied & ~relevant).sum(1), (tied & relevant).sum(1)


def hit(k: int, above: np.ndarray, tied_wrong: np.ndarray, tied_right: np.ndarray) -> np.ndarray:
    """Probability [Q] that a right item is among the first k when ties are broken at random.

    Of the tied items, `k - above` are shown; all of them are wrong with the hypergeometric probability
    C(tied_wrong, shown) / C(tied_wrong + tied_right, shown). Without ties this is 0 or 1; a model that gives
    every item the same similarity scores what chance scores, not 1.
    """
    shown = np.maximum(k - above, 0)
    possible = shown <= tied_wrong
    shown = np.minimum(shown, tied_wrong)
    all_wrong = np.exp(_log_choose(tied_wrong, shown) - _log_choose(tied_wrong + tied_right, shown))
    return np.where(possible, 1 - all_wrong, 1.0)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _commonest(text_of: np.ndarray, patients: np.ndarray, ks, resamples, seed) -> dict[str, dict]:
    """Recall of answering every image with the k commonest texts: what knowing the reports alone is worth."""
    order = np.argsort(-np.bincount(text_of), kind="stable")
    return {f"commonest@{k}": statistics.mean(np.isin(text_of, order[:k]), patients, resamples=resamples, seed=seed)
            for k in ks}


def _protocol(split: str) -> str:
    return (f"Split {split}. A breast's image embedding is the normalised mean over its views, its text the most "
            "specific one of its report. Identical texts are merged: any breast or text that carries the same words is "
            "a hit. Text to image asks each distinct text once. Ties are broken at random, in expectation. chance: "
            "random order; commonest: always answering with the commonest texts. Intervals: 95 %, percentile bootstrap "
            "over the queries' patients, with the gallery as it is.")
