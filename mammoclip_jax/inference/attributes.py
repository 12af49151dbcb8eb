"""Attributes for use: what images show of them, by which channels of the encoder, and what their texts are."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from mammoclip_jax import explain, models, provenance
from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.maps import Subject
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.prompts import unit
from mammoclip_jax.names import lookup
from mammoclip_jax.training import augment

KIND = "attributes"


class Channels(NamedTuple):
    """The channels of images that score highest for each attribute, by falling score."""

    stage: Shaped[np.ndarray, "N A k"]  # str
    channel: Int[np.ndarray, "N A k"]  # int32, number in the stage's map
    score: Float[np.ndarray, "N A k"]  # float32, cosines


class Attributes(ImageModel):
    """Mammo-FActOR: scores of `labels`, which are attributes, and of every channel of `attribute_stages` for each of them.

    Attributes:
        sentences: {label: the texts that its vector is the mean of}.
    """

    kind = KIND

    def _build(self, meta):
        about = meta.get(KIND)
        if not about:
            raise UserError(
                "these weights do not say which encoder and which sentences their attributes belong to: train them by "
                "this program, or copy the whole run or model folder."
            )
        self.labels = tuple(self.config.model.labels)
        self.attribute_stages = tuple(self.config.model.stages)
        self.sentences, self._encoder = dict(about["sentences"]), about["encoder"]
        return models.attribute_model(self.config.model)

    def set_variables(self, variables, step: int) -> None:
        """Other weights of the same shapes; nothing is compiled anew.

        Raises:
            UserError: their image encoder is not the one whose channels the adapters know.
        """
        found = provenance.encoder_fingerprint(self.config, variables)
        if found != self._encoder:
            raise UserError(
                f"the image encoder of these weights is another (fingerprint {found}) than the one whose channels the "
                f"attributes were learnt on ({self._encoder}): a channel of the one says nothing of the other's. Take the "
                "weights as they were trained, or train attributes on this encoder."
            )
        super().set_variables(variables, step)

    def attribute_scores(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N A"]:
        """Cosines, of the highest channel, of preprocessed images (uint8 or uint16) to each of `labels`."""
        return self._of_images(self._attribute_scores, images)

    def classify(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N A"]:
        """(1 + cosine) / 2: from 0 to 1, in the order of the scores. No probabilities: the loss compares images alone."""
        return (1 + self.attribute_scores(images)) / 2

    def channel_scores(self, images: Shaped[np.ndarray, "N H W"]) -> dict[str, Float[np.ndarray, "N C A"]]:
        """{stage: cosines of the adapters' vectors of each of its channels to each of `labels`}."""
        return self._of_images(self._channel_scores, images)

    def top_channels(self, images: Shaped[np.ndarray, "N H W"], k: int = 3) -> Channels:
        """The `k` channels, of all stages, with the highest score for each attribute.

        Raises:
            UserError: there are not so many.
        """
        scores = self.channel_scores(images)
        names = np.concatenate([[stage] * scores[stage].shape[1] for stage in self.attribute_stages])
        numbers = np.concatenate([np.arange(scores[stage].shape[1]) for stage in self.attribute_stages])
        joined = np.concatenate([scores[stage] for stage in self.attribute_stages], axis=1).swapaxes(1, 2)
        if not 1 <= k <= len(names):
            raise UserError(f"k={k} of the highest channels must be from 1 to {len(names)}, as many as there are.")
        best = np.argsort(-joined, axis=2, kind="stable")[..., :k]
        return Channels(names[best], numbers[best].astype(np.int32), np.take_along_axis(joined, best, axis=2))

    def map_stage(self, method: str, stage: str | None = None) -> str:
        """As of all models.

        Raises:
            UserError: besides, the method projects single places, which have no score here.
        """
        if method in explain.METHODS and explain.METHODS[method].over == "pooled":
            raise UserError(
                f"{method} projects the cells of a stage, and attributes are scores of whole channels: use factor."
            )
        return super().map_stage(method, stage)

    def _subject(self, variables) -> Subject:
        def channel_scores(features, stage, direction):
            scores = self._module.apply(variables, stage, features[None], method="scores_of")[0]
            return jnp.dot(scores, direction, precision="highest")

        return super()._subject(variables)._replace(channel_scores=channel_scores)

    @functools.partial(jax.jit, static_argnums=0)
    def _attribute_scores(self, variables, images):
        return self._encode(variables, augment.eval_images(images, self._options))[0]

    @functools.partial(jax.jit, static_argnums=0)
    def _channel_scores(self, variables, images):
        maps = self._module.apply(variables, augment.eval_images(images, self._options), method="encode")
        return self._module.apply(variables, maps, method="channel_scores")


def sentences_of(prompts: str | Mapping[str, Any], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{label: its positive texts} of a prompt file.

    Raises:
        UserError: there is no such file, a mistake in it, or a label without texts.
    """
    pairs = load_prompts(prompts)
    return {label: lookup(pairs, label, f"label in the prompts {prompts!r}:").positive for label in labels}


def dictionary(texts: DualEncoder, sentences: Mapping[str, Sequence[str]]) -> Float[np.ndarray, "A D"]:
    """Of each attribute the mean of its sentences' projected embeddings, not of unit vectors, scaled to length one; float32
    (the notebook of Mammo-FActOR, cell 1)."""
    return unit(
        np.stack([texts.project_texts(said).astype(np.float64).mean(axis=0) for said in sentences.values()])
    ).astype(np.float32)


def with_dictionary(open_weights: Callable, config) -> Callable:
    """`open_weights` whose dual encoders also hold attributes/dictionary: the vectors of `config.model.labels`, so that
    attributes start from it as from any weights, with its terms and its patients.

    Raises:
        UserError: of what is opened: its vectors are of another length than config.model.attributes.dim.
    """
    wanted = config.model.attributes

    def opened(name):
        variables, meta = open_weights(name)
        if meta["kind"] != DualEncoder.kind:
            return variables, meta
        texts = DualEncoder(variables, meta, meta["step"])
        if texts.config.model.dim != wanted.dim:
            raise UserError(
                f"the vectors of {name} have {texts.config.model.dim} numbers, and config.model.attributes.dim is "
                f"{wanted.dim}: set it to those."
            )
        vectors = dictionary(texts, sentences_of(wanted.prompts, config.model.labels))
        statistics = {**variables.get("batch_stats", {}), "attributes": {"dictionary": vectors}}
        return {**variables, "batch_stats": statistics}, meta

    return opened


def about(config, preprocessing: Mapping[str, Any], variables) -> dict[str, Any]:
    """JSON, what a file of attributes says of itself: sentences {label: texts}, grids {stage: [rows, columns, channels]},
    and the fingerprint of the encoder.

    Raises:
        UserError: the dictionary has no vectors: nothing was loaded into it.
    """
    vectors = np.asarray(variables["batch_stats"]["attributes"]["dictionary"])
    if not np.linalg.norm(vectors, axis=-1).all():
        raise UserError(
            "config.warm_start loads no vectors of attributes: name a dual encoder, as "
            'config.warm_start.encoder=dict(weights=..., load=("image_encoder/.*", "attributes/dictionary")).'
        )
    prompts = config.model.attributes.prompts
    module, channels = models.attribute_model(config.model), augment.preprocess_options(config).channels
    blank = jax.ShapeDtypeStruct((1, preprocessing["height"], preprocessing["width"], channels), jnp.float32)
    maps = jax.eval_shape(functools.partial(module.apply, method="encode"), variables, blank)
    return {
        "sentences": {name: list(said) for name, said in sentences_of(prompts, config.model.labels).items()},
        "grids": {stage: list(maps[stage].shape[1:]) for stage in config.model.stages},
        "encoder": provenance.encoder_fingerprint(config, variables),
    }


def check_adapters(mine: Mapping[str, Any], started) -> None:
    """Raises UserError where a run starts with adapters that another encoder's channels taught.

    Args:
        mine: `about` the run; started: `warm_start.Started`.
    """
    for name, source in started.sources.items():
        theirs = source.get(KIND, {}).get("encoder", mine["encoder"])
        if theirs != mine["encoder"] and any(path.startswith("adapters_") for path in started.reports[name].loaded):
            raise UserError(
                f"config.warm_start.{name} loads adapters of another encoder (fingerprint {theirs}) than this run's "
                f"({mine['encoder']}): leave them out (skip), or load the encoder from there too."
            )
