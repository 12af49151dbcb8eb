"""Zero-shot classification with prompt pairs: how much nearer is an image to "mass" than to "no mass"?"""

import json
from pathlib import Path
from typing import Any, Mapping, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import (
    Features,
    aggregate,
    breasts,
    first_rows,
    label_values,
    select,
    unit,
)
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.names import suggestion

PROMPTS = Path(__file__).with_name("prompts")


class Pair(NamedTuple):
    """Texts that say a finding is there and that it is not. Several of a side are averaged as embeddings."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def load_prompts(prompts: str | Path | Mapping[str, Any]) -> dict[str, Pair]:
    """{label: Pair} from a name in `evaluation/prompts`, a JSON file, or the mapping that a file holds as "labels".

    Raises:
        UserError: no such file, or a label without texts on both sides.
    """
    if isinstance(prompts, Mapping):
        source, labels = "the given prompts", prompts
    else:
        path = Path(prompts) if str(prompts).endswith(".json") else PROMPTS / f"{prompts}.json"
        if not path.is_file():
            known = sorted(p.stem for p in PROMPTS.glob("*.json"))
            raise UserError(f"no prompt file {prompts!r}.{suggestion(str(prompts), known)} Known: {', '.join(known)}; "
                            "or give the path of a .json file.")
        source, labels = str(path), _labels_of(path)
    pairs = {label: Pair(*(_texts(entry, side) for side in Pair._fields)) for label, entry in labels.items()}
    for label, pair in pairs.items():
        if not pair.positive or not pair.negative:
            raise UserError(f"{source}: label {label!r} needs texts under both 'positive' and 'negative'.")
    return pairs


def _labels_of(path: Path) -> Mapping[str, Any]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a prompt file ({type(error).__name__}: {error}); it should be JSON like "
                        '{"labels": {"mass": {"positive": ["mass"], "negative": ["no mass"]}}}.') from error
    if not isinstance(labels, Mapping):
        raise UserError(f'{path}: "labels" should map each label to its texts, not be a {type(labels).__name__}.')
    return labels


def _texts(entry: Any, side: str) -> tuple[str, ...]:
    texts = entry.get(side, ()) if isinstance(entry, Mapping) else ()
    return (texts,) if isinstance(texts, str) else tuple(texts)


def text_bank(model, pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """{label: float32 [2, D]}: unit-norm mean embedding of the positive and of the negative texts."""
    texts = list(dict.fromkeys(text for pair in pairs.values() for side in pair for text in side))
    vector = dict(zip(texts, np.asarray(model.embed_text(texts), dtype=np.float32), strict=True))
    return {label: unit(np.stack([np.mean([vector[t] for t in side], axis=0) for side in pair]))
            for label, pair in pairs.items()}


def score(images: np.ndarray, bank: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{label: float32 [n]}: cos(image, positive) - cos(image, negative), in [-2, 2], for unit-norm `images` [n, D]."""
    return {label: images @ (sides[0] - sides[1]) for label, sides in bank.items()}


def zero_shot(model, dataset, *, split: str = "test", prompts: str | Mapping[str, Any] = "mammo_clip",
              labels: tuple[str, ...] | None = None, patients: int | None = None,
              resamples: int = statistics.RESAMPLES, seed: int = 0, features: Features | None = None) -> Result:
    """AUROC of each label of the prompt file: a breast's mean and maximum over its views, and single images.

    Metrics: "mass/auroc" (breast, mean), "mass/auroc_max" (breast, maximum), "mass/auroc_image". A breast is positive
    when any of its images is; images whose label is unknown are left out. `patients` limits the work to so many, drawn
    by `seed`.
    """
    pairs = load_prompts(prompts)
    pairs = pairs if labels is None else {label: pairs[label] for label in _known(labels, pairs)}
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    scores = score((features or Features(model, dataset)).images(positions), text_bank(model, pairs))
    metrics, counts = {}, []
    for label, values in scores.items():
        truth = label_values(rows, label)
        known = ~np.isnan(truth)
        found, row = _label(rows[known], truth[known], values[known], resamples, seed)
        metrics |= {f"{label}/{name}": entry for name, entry in found.items()}
        counts.append({"label": label, **row, "positive_prompts": "; ".join(pairs[label].positive),
                       "negative_prompts": "; ".join(pairs[label].negative)})
    per_image = rows[["image", "patient", "laterality", "view"]].assign(**scores)
    tables = {"labels": pd.DataFrame(counts), "scores": per_image}
    return Result("zero_shot", _protocol(split, prompts), metrics, tables)


def _known(labels, pairs) -> list[str]:
    for label in labels:
        if label not in pairs:
            known = ", ".join(pairs)
            raise UserError(f"the prompts have no label {label!r}.{suggestion(label, pairs)} Known: {known}.")
    return list(labels)


def _label(rows, truth, values, resamples, seed) -> tuple[dict[str, dict], dict[str, Any]]:
    """Metrics of one label over the rows where it is known, and the row of the table of labels."""
    if len(rows) == 0:
        nothing = statistics.entry(None, n=0, reason="no image has this label")
        return dict.fromkeys(("auroc", "auroc_max", "auroc_image"), nothing), {"images": 0}
    group = breasts(rows)
    patient = rows["patient"].to_numpy()
    options = {"resamples": resamples, "seed": seed}
    breast_truth, breast_patient = aggregate(truth, group, "max"), patient[first_rows(group)]
    found = {
        "auroc": statistics.auroc(breast_truth, aggregate(values, group, "mean"), breast_patient, **options),
        "auroc_max": statistics.auroc(breast_truth, aggregate(values, group, "max"), breast_patient, **options),
        "auroc_image": statistics.auroc(truth, values, patient, **options),
    }
    return found, {"images": len(rows), "positive_images": int(truth.sum()), "breasts": len(breast_truth),
                   "positive_breasts": int(breast_truth.sum()), "patients": len(set(patient))}


def prompts_name(prompts: str | Path | Mapping[str, Any]) -> str:
    """How a protocol calls the prompts."""
    return "the given prompts" if isinstance(prompts, Mapping) else f"the {Path(prompts).stem} prompts"


def _protocol(split: str, prompts) -> str:
    return (f"Split {split}, {prompts_name(prompts)}. Score: cosine to the positive texts minus cosine to the negative "
            "texts, each side the normalised mean of its text embeddings. auroc: mean over the views of a breast; "
            "auroc_max: maximum over them; auroc_image: single images. A breast is positive when any of its images is. "
            "Intervals: 95 %, percentile bootstrap over patients.")
