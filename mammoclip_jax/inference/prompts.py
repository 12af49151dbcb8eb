"""What a dual encoder is asked with prompts: the directions of labels in its space, and scores along them."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.prompt_files import Pair

# What a map explains: "score" the cosine to the positive texts minus that to the negative ones (the zero-shot score);
# "positive" the cosine to the positive texts alone.
EXPLAIN = ("score", "positive")


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
