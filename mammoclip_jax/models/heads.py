"""A linear classification head on an image encoder, over one view or several."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_name, suggestion

# Logits [N labels] -> probabilities: each label by itself, or classes that sum to one.
ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}
HEAD = "classification_head"  # its parameters, kernel [features, classes] and bias [classes]
COMBINATIONS = ("mean", "max", "attention")  # of the features of an example's views


class ViewAttention(nn.Module):
    """Weights of an example's views from their features: gated attention (Ilse et al. 2018, arXiv:1802.04712, eq. 9).

    Parameters: tanh/{kernel, bias} and gate/{kernel, bias} [features, hidden], score/kernel [hidden, 1].
    """

    hidden: int = 128

    @nn.compact
    def __call__(self, features: Float[Array, "B V c"], there: Bool[Array, "B V"]) -> Float[Array, "B V"]:
        """Weights that sum to one over the views that are there, and are 0 elsewhere."""
        gated = jnp.tanh(Dense(self.hidden, name="tanh")(features)) * nn.sigmoid(
            Dense(self.hidden, name="gate")(features)
        )
        scores = Dense(1, use_bias=False, name="score")(gated)[..., 0]
        return nn.softmax(jnp.where(there, scores, -jnp.inf), axis=-1)


class Classifier(nn.Module):
    """Logits of `classes` labels from the pooled features of an image encoder, after the encoder's own dropout.

    As Mammo-CLIP's `BreastClipClassifier` (Classifiers/models/breast_clip_classifier.py). Parameters:
    image_encoder/..., classification_head/{kernel [features, classes], bias [classes]}, and with the combination
    "attention" view_attention/...
    """

    image_encoder: nn.Module
    classes: int
    combine: str = "mean"

    def setup(self):
        self.classification_head = Dense(self.classes)
        if self.combine == "attention":
            self.view_attention = ViewAttention()

    def __call__(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N classes"], Mapping[str, Array]]:
        """Logits (float32) and the encoder's named stage maps; `offsets` are added to the stages of their name.

        Training needs the "dropout" generator and a mutable "batch_stats".
        """
        pooled, stages = self.features(image, train=train, offsets=offsets)
        if self.combine == "attention" and self.is_initializing():
            self.view_attention(pooled[:, None], jnp.ones((len(pooled), 1), bool))
        return self.project_image(pooled), stages

    def project_image(self, pooled: Float[Array, "... c"], *, train: bool = False) -> Float[Array, "... classes"]:
        """Logits of pooled features, or of the features of places of the stage that is pooled."""
        return self.classification_head(pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32)))

    def of_views(
        self, image: Float[Array, "B*V H W C"], there: Bool[Array, "B V"], *, train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits of breasts or exams from their views' features, combined over the views that are there."""
        pooled, _ = self.features(image, train=train)
        pooled = pooled.reshape(*there.shape, -1)
        if self.combine == "max":
            pooled = jnp.where(there[..., None], pooled, -jnp.inf).max(axis=1)
        else:
            weights = (
                self.view_attention(pooled, there)
                if self.combine == "attention"
                else there / there.sum(axis=1, keepdims=True)
            )
            pooled = (pooled * weights[..., None]).sum(axis=1)
        return self.classification_head(pooled)

    def features(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], Mapping[str, Array]]:
        """What the head sees: pooled features (float32), with dropout in training; and the stage maps."""
        pooled, stages = self.image_encoder(image, train=train, offsets=offsets)
        return pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32)), stages


def from_options(options: Mapping[str, Any], image_encoder: Callable[..., nn.Module]) -> Classifier:
    """The classifier of {"image": options of an image encoder, "labels": names, "activation", "dtype"}, and
    perhaps "combine", one of `COMBINATIONS`.

    Other fields of `config.model` are those of a dual encoder, and are not looked at. `image_encoder` makes the encoder
    of options and a dtype (`models.image_encoder`).

    Raises:
        UserError: a field is missing, there is no label, or the activation is not in `ACTIVATIONS`.
    """
    labels = labels_of(options, ("image", "labels", "activation", "dtype"), "a classifier")
    activation = options["activation"]
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config.model.activation is {activation!r}.{suggestion(str(activation), ACTIVATIONS)} "
            f"It may be {' or '.join(ACTIVATIONS)}."
        )
    combine = options.get("combine", "mean")
    check_name(combine, COMBINATIONS, "combination of views (config.model.combine)")
    return Classifier(image_encoder(options["image"], jnp.dtype(options["dtype"])), len(labels), combine)


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
