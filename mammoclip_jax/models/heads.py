"""A linear classification head on an image encoder."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

# Logits [N labels] -> probabilities: each label by itself, or classes that sum to one.
ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}


class Classifier(nn.Module):
    """Logits of `classes` labels from the pooled features of an image encoder, after the encoder's own dropout.

    As Mammo-CLIP's `BreastClipClassifier` (Classifiers/models/breast_clip_classifier.py). Parameters:
    image_encoder/..., classification_head/{kernel [features, classes], bias [classes]}.
    """

    image_encoder: nn.Module
    classes: int

    def setup(self):
        self.classification_head = nn.Dense(self.classes)

    def __call__(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N classes"], Mapping[str, Array]]:
        """Logits (float32) and the encoder's named stage maps; `offsets` are added to the stages of their name.

        Training needs the "dropout" generator and a mutable "batch_stats".
        """
        pooled, stages = self.features(image, train=train, offsets=offsets)
        return self.classification_head(pooled), stages

    def features(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], Mapping[str, Array]]:
        """What the head sees: pooled features (float32), with dropout in training; and the stage maps."""
        pooled, stages = self.image_encoder(image, train=train, offsets=offsets)
        return pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32)), stages


def from_options(options: Mapping[str, Any], image_encoder: Callable[..., nn.Module]) -> Classifier:
    """The classifier of {"image": options of an image encoder, "labels": names, "activation", "dtype"}.

    Other fields of `config.model` are those of a dual encoder, and are not looked at. `image_encoder` makes the encoder
    of options and a dtype (`models.image_encoder`).

    Raises:
        UserError: a field is missing, there is no label, or the activation is not in `ACTIVATIONS`.
    """
    labels = labels_of(options, ("image", "labels", "activation", "dtype"), "a classifier")
    activation = options["activation"]
    if activation not in ACTIVATIONS:
        raise UserError(f"config.model.activation is {activation!r}.{suggestion(str(activation), ACTIVATIONS)} "
                        f"It may be {' or '.join(ACTIVATIONS)}.")
    return Classifier(image_encoder(options["image"], jnp.dtype(options["dtype"])), len(labels))


def labels_of(options: Mapping[str, Any], needed: Iterable[str], what: str) -> tuple[str, ...]:
    """The labels of `config.model`, which must have all `needed` fields; `what` is the model for people.

    Raises:
        UserError: a field is missing, or there is no label, or one twice.
    """
    missing = [name for name in needed if name not in options]
    if missing:
        raise UserError(f"config.model of {what} lacks {', '.join(missing)}.")
    labels = tuple(options["labels"])
    if not labels or len(set(labels)) != len(labels):
        raise UserError(f"config.model.labels is {labels}: {what} needs at least one label, and no label twice.")
    return labels
