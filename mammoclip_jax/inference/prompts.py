"""What a dual encoder is asked with prompts: the directions of labels in its space, and scores along them."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mammoclip_jax.data.text import concepts as lexicons
from mammoclip_jax.data.text.label_values import flag
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.prompt_files import Pair

# What a map explains: "score" the cosine to the positive texts minus that to the negative ones (the zero-shot score);
# "positive" the cosine to the positive texts alone.
EXPLAIN = ("score", "positive")
NORMAL = "normal_tissue"  # the class without a finding, among regions and concepts


def texts_of(concepts: str | Mapping[str, Sequence[str]], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{label: prompts} of each of `labels`, of which NORMAL is tissue without a finding.

    Args:
        concepts: a lexicon of `data.text.concepts`, all of whose concepts of a finding speak for it; or the prompts
            themselves, by label.

    Raises:
        UserError: it has nothing to say of one of them.
    """
    said: dict[str, tuple[str, ...]] = {}
    if isinstance(concepts, Mapping):
        said = {name: tuple(texts) for name, texts in concepts.items()}
    else:
        for concept in lexicons.load(concepts):
            if flag(dict(concept.values).get(concept.finding)) == 0:
                continue  # it says that the finding is not there
            name = concept.finding or NORMAL
            said[name] = said.get(name, ()) + tuple(concept.prompts)
    for label in labels:
        if not said.get(label):
            raise UserError(
                f"concepts={concepts if isinstance(concepts, str) else sorted(said)!r} has no prompt for {label!r}: "
                f"name another lexicon, or give prompts as {{label: [texts]}} of {', '.join(labels)}."
            )
    return {label: said[label] for label in labels}


def text_bank(texts, pairs: Mapping[str, Pair]) -> dict[str, np.ndarray]:
    """{label: float32 [2, D]}: unit-norm mean embedding of the positive and of the negative texts.

    `texts`: a model or a `features.TextBank`; it is asked once.
    """
    return _means(texts.embed_text, pairs)


def class_bank(texts, classes: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[list[str], np.ndarray]]:
    """{label: (names of its C classes, float32 [C, D])}: unit-norm mean embedding of the texts of each class."""
    means = _means(texts.embed_text, {label: tuple(named.values()) for label, named in classes.items()})
    return {label: (list(named), means[label]) for label, named in classes.items()}


def _means(embed: Callable, sides_of: Mapping[str, tuple[tuple[str, ...], ...]]) -> dict[str, np.ndarray]:
    texts = list(dict.fromkeys(text for sides in sides_of.values() for side in sides for text in side))
    if not texts:
        return {}
    vector = dict(zip(texts, np.asarray(embed(texts), dtype=np.float32), strict=True))
    return {
        label: unit(np.stack([np.mean([vector[t] for t in side], axis=0) for side in sides]))
        for label, sides in sides_of.items()
    }


def score(images: np.ndarray, bank: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{label: float32 [n]}: cos(image, positive) - cos(image, negative), in [-2, 2], for unit-norm `images` [n, D]."""
    return {label: images @ (sides[0] - sides[1]) for label, sides in bank.items()}


def directions(
    model, pairs: Mapping[str, Pair], explain: str, method: str = "grad_cam", stage: str | None = None
) -> dict[str, np.ndarray]:
    """{label: float32 [D]}: what the map of a method differentiates, see `EXPLAIN`, in the space of that method.

    Raises:
        UserError: `explain` is neither.
    """
    if explain not in EXPLAIN:
        raise UserError(f"explain={explain!r} is not known; use one of {', '.join(EXPLAIN)}.")
    bank = _means(functools.partial(model.text_directions, method=method, stage=stage), pairs)
    return {label: sides[0] - sides[1] if explain == "score" else sides[0] for label, sides in bank.items()}


def unit(vectors: np.ndarray) -> np.ndarray:
    """`vectors` [..., D] scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
