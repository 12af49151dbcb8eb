"""Attributes from the channels of an encoder's maps: Mammo-FActOR (Ghosh et al. 2024, arXiv:2405.12255, section 2.2).

Each channel of a map is a region of its own: its cells, flattened row by row, go through an adapter, and the cosine of what
comes out to the attribute's vector is the channel's score. An attribute has one adapter for all channels of a map, which
sees a channel's values and not which channel it is. The encoder is frozen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.heads import labels_of
from mammoclip_jax.names import check_options

FIELDS = ("image", "labels", "stages", "attributes", "dtype")
Maps = Mapping[str, Float[Array, "N h w C"]]  # of stages by name, each with h, w and C of its own

# torch's initial values of a Linear, kernel and bias alike: uniform within 1 / sqrt(inputs) (here before the last axis).
_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0,))


def _bias(inputs: int) -> Callable:
    return lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / jnp.sqrt(inputs)


class Adapters(nn.Module):
    """Of each attribute Linear - ReLU - Linear over the cells of a channel, as a product over the attributes at once.

    Parameters, A attributes: first/kernel [A, h*w, hidden], first/bias [A, hidden], second/kernel [A, hidden, dim],
    second/bias [A, dim]; with `code` besides channels/code [C, code] and channels/kernel [A, code, hidden].

    Attributes:
        hidden: units between; 0: as many as cells, as published.
        code: numbers that are learnt of each channel, and stand beside its cells, so that adapters know which channel they
            see; 0: none, as published.
        dtype: of the two products.
    """

    attributes: int
    dim: int
    hidden: int = 0
    code: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Float[Array, "N h w C"]) -> Float[Array, "N A C dim"]:
        """The vectors of the channels, float32."""
        cells, channels = maps.shape[1] * maps.shape[2], maps.shape[3]
        hidden, of = self.hidden or cells, self.attributes
        first = _Products(of, hidden, cells, name="first")()
        second = _Products(of, self.dim, hidden, name="second")()
        wide = jnp.promote_types(self.dtype, maps.dtype) if self.dtype == jnp.float32 else self.dtype
        x = jnp.moveaxis(maps.reshape(len(maps), cells, channels), 1, 2).astype(wide)
        y = jnp.einsum("nci,aih->nach", x, first[0].astype(wide)) + first[1].astype(wide)[:, None]
        if self.code:
            code, kernel = _Codes(of, hidden, channels, self.code, name="channels")()
            y = y + jnp.einsum("ce,aeh->ach", code, kernel).astype(wide)
        z = jnp.einsum("nach,ahd->nacd", nn.relu(y), second[0].astype(wide)) + second[1].astype(wide)[:, None]
        return z.astype(jnp.promote_types(z.dtype, jnp.float32))


class _Products(nn.Module):
    attributes: int
    outputs: int
    inputs: int

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", _kernel, (self.attributes, self.inputs, self.outputs))
        return kernel, self.param("bias", _bias(self.inputs), (self.attributes, self.outputs))


class _Codes(nn.Module):
    attributes: int
    outputs: int
    channels: int
    width: int

    @nn.compact
    def __call__(self):
        code = self.param("code", nn.initializers.normal(1.0), (self.channels, self.width))
        return code, self.param("kernel", _kernel, (self.attributes, self.width, self.outputs))


class Dictionary(nn.Module):
    """The vectors of the attributes [A, dim]. Not learnt: they lie beside the batch statistics, as
    `attributes/dictionary`, and come from the texts of a dual encoder."""

    attributes: int
    dim: int

    @nn.compact
    def __call__(self) -> Float[Array, "A dim"]:
        return self.variable("batch_stats", "dictionary", lambda: jnp.zeros((self.attributes, self.dim))).value


class AttributeModel(nn.Module):
    """A frozen image encoder, a dictionary, and adapters of each stage of `stages`.

    Parameters: image_encoder/..., adapters_STAGE/... (`Adapters`); statistics: attributes/dictionary.
    """

    image_encoder: nn.Module
    stages: Sequence[str]
    count: int
    dim: int = 512
    hidden: int = 0
    channel_code: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        self.attributes = Dictionary(self.count, self.dim)
        options = (self.count, self.dim, self.hidden, self.channel_code, self.dtype)
        self.adapters = {stage: Adapters(*options) for stage in self.stages}

    def __call__(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N A"], Maps]:
        """Scores of the images, and all named stage maps of the encoder; `offsets` are added to the stages of their name.

        The encoder is in evaluation mode, whatever `train` says.
        """
        maps = self.encode(image, offsets=offsets)
        return self.image_scores(maps), maps

    def encode(self, image: Float[Array, "N H W C"], *, offsets: Mapping[str, Array] = {}) -> Maps:
        """The encoder's named stage maps.

        Raises:
            UserError: it lacks one of `stages`.
        """
        _, maps = self.image_encoder(image, train=False, offsets=offsets)
        for stage in self.stages:
            if stage not in maps:
                raise UserError(
                    f"config.model.stages names {stage!r}, and the image encoder has the stages {', '.join(maps)}."
                )
        return maps

    def image_scores(self, maps: Maps) -> Float[Array, "N A"]:
        """The highest score of a channel, over all channels of all stages."""
        return jnp.concatenate(list(self.channel_scores(maps).values()), axis=1).max(axis=1)

    def channel_scores(self, maps: Maps) -> dict[str, Float[Array, "N C A"]]:
        """Of each of `stages` the cosines of its channels to the attributes, float32."""
        return {stage: self.scores_of(stage, maps[stage]) for stage in self.stages}

    def scores_of(self, stage: str, maps: Float[Array, "N h w C"]) -> Float[Array, "N C A"]:
        """The cosines of the channels of one of `stages` to the attributes, float32."""
        return jnp.einsum("nacd,ad->nca", _unit(self.adapters[stage](maps)), self.attributes(), precision="highest")


def _unit(x):
    """Rows of norm one; a zero row stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def from_options(options: Mapping[str, Any], image_encoder: Callable[..., nn.Module]) -> AttributeModel:
    """The model of {"image": options, "labels": names of the attributes, "stages": of the encoder, "attributes": {"dim",
    "hidden", "channel_code"}, "dtype"}. Other fields of `config.model` are not looked at.

    `image_encoder` makes the encoder of options and a dtype (`models.image_encoder`).

    Raises:
        UserError: a field is missing, an option is unknown, or no stage is named, or one twice.
    """
    labels, dtype = labels_of(options, FIELDS, "attributes"), jnp.dtype(options["dtype"])
    stages = tuple(options["stages"])
    if not stages or len(set(stages)) != len(stages):
        raise UserError(
            f"config.model.stages is {stages}: name the stages of the image encoder whose channels the attributes are "
            'looked for in, each once, such as ("stage3",).'
        )
    chosen = dict(options["attributes"])
    chosen.pop("prompts", None)  # what the dictionary is made of
    check_options(AttributeModel, chosen, "config.model.attributes")
    missing = {"dim"} - {*chosen}
    if missing or chosen["dim"] < 1:
        raise UserError("config.model.attributes.dim is the length of the dual encoder's vectors: set it.")
    known = {field.name for field in dataclasses.fields(AttributeModel)}
    chosen = {name: value for name, value in chosen.items() if name in known}
    return AttributeModel(image_encoder(dict(options["image"]), dtype), stages, len(labels), dtype=dtype, **chosen)
