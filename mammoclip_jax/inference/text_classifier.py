"""A detector whose classes are texts (`config.model.text_classifier`): where their vectors come from, and other classes for
one that is trained."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.heads import Detector
from mammoclip_jax.inference.prompts import class_bank, texts_of


def with_vectors(open_weights: Callable, labels: Sequence[str], concepts: str) -> Callable:
    """`open_weights` whose dual encoders also hold texts/prompts: the vectors [labels, D] of the prompts that `concepts` has
    for each label, so that a detector starts from them as from any weights, with their terms and their patients."""

    def opened(name):
        variables, meta = open_weights(name)
        if meta["kind"] != DualEncoder.kind:
            return variables, meta
        vectors = of_labels(DualEncoder(variables, meta, meta["step"]), concepts, labels)
        statistics = {**variables.get("batch_stats", {}), "texts": {"prompts": {"vectors": vectors}}}
        return {**variables, "batch_stats": statistics}, meta

    return opened


def of_labels(
    texts, concepts: str | Mapping[str, Sequence[str]], labels: Sequence[str]
) -> Float[np.ndarray, "labels D"]:
    """Unit-norm means of the prompts' embeddings; `texts` is a dual encoder."""
    return class_bank(texts, {"": texts_of(concepts, labels)})[""][1]


def renamed(
    detector: Detector, texts: DualEncoder, concepts: str | Mapping[str, Sequence[str]], labels: Sequence[str]
) -> Detector:
    """The detector asked for other classes, by their prompts; nothing is learnt anew.

    Args:
        texts: the dual encoder that made the vectors of its own classes.
        concepts: a lexicon, or {label: prompts}; see `prompts.texts_of`.

    Raises:
        UserError: the detector's classes are no texts, or the vectors are of another length.
    """
    dim = detector.config.model.text_classifier.dim
    if not dim:
        raise UserError(
            "this detector has learnt its classes without texts (config.model.text_classifier.dim=0): it knows "
            f"{', '.join(detector.labels)} alone."
        )
    vectors = of_labels(texts, concepts, labels)
    if vectors.shape[1] != dim:
        raise UserError(
            f"the texts' vectors have {vectors.shape[1]} numbers, those of this detector {dim}: give the dual encoder that it "
            "was trained with."
        )
    return detector.with_classes(dict(zip(labels, vectors)))
