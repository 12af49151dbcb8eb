"""Images and texts in one space."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mammoclip_jax import explain, models
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import inputs
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.models.dual_encoder import OWN_HEAD
from mammoclip_jax.names import check_name
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import init_variables

SHORTEST_TEXT = 16  # tokens; texts are padded to a power of two from here on


class DualEncoder(ImageModel):
    """A dual encoder: embeddings, similarities, scores by prompts and Grad-CAM."""

    kind = "dual_encoder"
    _encoding = "encode_image"

    def _build(self, meta):
        self._tokenize = Tokenize.from_json(meta["tokenizer"]) if meta["tokenizer"] else None
        module = models.build(self.config.model, self._tokenize.vocab_size if self._tokenize else 0)
        self.local_heads = module.heads.local() if module.heads else {}
        self.region_heads = module.heads.of_regions() if module.heads else ()
        if hasattr(module.image_encoder, "of_boxes"):
            self.region_heads = (*self.region_heads, OWN_HEAD)
        return module

    def embed_image(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of preprocessed images, uint8 or uint16."""
        return self._of_images(self._embed_image, images)

    def embed_regions(
        self, images: Shaped[np.ndarray, "N H W"], boxes: Float[np.ndarray, "N R 4"], head: str | None = None
    ) -> Float[np.ndarray, "N R D"]:
        """Unit vectors of regions of preprocessed images, in the space of the texts.

        Args:
            boxes: left, top, right, bottom in pixels of the images.
            head: name in config.model.heads, or "image_encoder" where that is one of CLIP's ResNets, whose last stage
                and pool make vectors of regions too; None: the first of kind regions, before the encoder.

        Raises:
            UserError: there is no such head.
        """
        if not self.region_heads:
            raise UserError("embed_regions needs a head of kind regions (config.model.heads): this model has none.")
        head = head or self.region_heads[0]
        check_name(head, self.region_heads, "head of kind regions")
        embed = functools.partial(self._embed_regions, head)
        return self._of_images(embed, images, np.asarray(boxes, np.float32))

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts; what is longer than config.data.text_length is cut.

        Raises:
            UserError: one text instead of a list, or the weights were imported without their tokenizer.
        """
        return self.embed_tokens(*self._needed_tokenizer().encode(inputs.texts(texts), self.config.data.text_length))

    def embed_tokens(self, ids: Int[np.ndarray, "N L"], mask: Bool[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of token ids; mask is True for real tokens, which come first. Padding changes nothing."""
        return self._batched(self._embed_text, *_without_padding(np.asarray(ids, np.int32), np.asarray(mask, bool)))

    def project_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """The vectors that `embed_text` scales to length one, as the projection gives them."""
        ids, mask = self._needed_tokenizer().encode(inputs.texts(texts), self.config.data.text_length)
        return self._batched(self._project_texts, *_without_padding(ids, mask))

    def embed_sentences(
        self, texts: Sequence[str], head: str | None = None
    ) -> tuple[Float[np.ndarray, "N S D"], Bool[np.ndarray, "N S"]]:
        """Unit vectors of each text's sentences in the space of a head of kind local, and which there are.

        Sentences are marked and pooled as in training, each with what the text tower has read around it. One that does
        not fit whole into config.data.text_length is none, nor are those behind the head's `sentences`.

        Args:
            head: name in config.model.heads; None: the first of that kind.

        Raises:
            UserError: there is no such head, or the weights were imported without their tokenizer.
        """
        known = tuple(self.local_heads.values())
        if not known:
            raise UserError("embed_sentences needs a head of kind local (config.model.heads), and this model has none.")
        head = head or known[0]
        check_name(head, known, "head of kind local")
        count = self._module.heads.makers[head](parent=None).sentences
        ids, mask, sentence = self._needed_tokenizer().encode_sentences(
            inputs.texts(texts), self.config.data.text_length, count
        )
        ids, mask, sentence = _without_padding(ids, mask, sentence)
        return self._batched(functools.partial(self._embed_sentences, head), ids, mask, sentence)

    def text_directions(
        self, texts: Sequence[str], method: str = "grad_cam", stage: str | None = None
    ) -> Float[np.ndarray, "N D"]:
        """What `saliency` multiplies with to explain texts by a method: their unit vectors, or of local_alignment the mean
        of those of a text's sentences (0 without any), in the space of the head."""
        if explain.METHODS[method].over != "head":
            return self.embed_text(texts)
        vectors, there = self.embed_sentences(texts, self.local_heads[self.map_stage(method, stage)])
        return vectors.sum(axis=1) / np.maximum(there.sum(axis=1, keepdims=True), 1)

    def head_outputs(self, name: str, images: Shaped[np.ndarray, "N V H W"]) -> dict[str, np.ndarray]:
        """What the head `name` of config.model.heads makes of N times V views of one breast, in evaluation mode.

        Args:
            images: preprocessed, uint8 or uint16, in the order of the slots that the head has learnt with.

        Returns:
            {part: [N ...]} of its class in `models`; a part that is no array of the N, as a temperature, is left out.

        Raises:
            UserError: there is no such head, it reads texts, or another number of views.
        """
        check_name(name, self._module.heads.makers if self._module.heads else (), "head in config.model.heads")
        return self._of_images(functools.partial(self._head_outputs, name), images, views=True)

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that was learnt: one over the temperature."""
        return float(np.exp(self._variables["params"]["logit_scale"]))

    def similarity(self, images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "M D"]) -> np.ndarray:
        """Cosines [N, M] of unit vectors."""
        return np.asarray(images) @ np.asarray(texts).T

    def _directions(self, towards, method="grad_cam", stage=None):
        texts = len(towards) and isinstance(towards[0], str)
        return self.text_directions(towards, method, stage) if texts else super()._directions(towards)

    def _needed_tokenizer(self) -> Tokenize:
        if self._tokenize is None:
            raise UserError(
                "these weights came without their tokenizer: import them again with --tokenizer=FOLDER, "
                "or give token ids to embed_tokens."
            )
        return self._tokenize

    def _fresh(self, key):
        return init_variables(self._module, key, self._blank().shape[1:], self.config.data.text_length)

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_image(self, variables, images):
        return self._encode(variables, augment.eval_images(images, self._options))[0]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _embed_regions(self, head, variables, images, boxes):
        pixels = augment.eval_images(images, self._options)
        return self._module.apply(variables, head, pixels, boxes, method="embed_regions")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _head_outputs(self, name, variables, images):
        n, views = images.shape[:2]
        pixels = augment.eval_images(images.reshape(-1, *images.shape[2:]), self._options)
        _, outputs = self._module.apply(variables, pixels, method="image_outputs")
        inputs = {f"image/{key}": x.reshape(n, views, *x.shape[1:]) for key, x in outputs.items()}
        inputs |= {"mask": jnp.ones(n, bool), "view_mask": jnp.ones((n, views), bool)}
        found = self._module.apply(variables, name, inputs, method="apply_head")
        return {key.removeprefix(f"{name}/"): x for key, x in found.items() if x.ndim}

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_text(self, variables, ids, mask):
        return self._module.apply(variables, ids, mask, train=False, method="encode_text")[0]

    @functools.partial(jax.jit, static_argnums=0)
    def _project_texts(self, variables, ids, mask):
        return self._module.apply(variables, ids, mask, train=False, method="project_texts_raw")

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _embed_sentences(self, head, variables, ids, mask, sentence):
        return self._module.apply(variables, head, ids, mask, sentence, train=False, method="embed_sentences")


def _without_padding(ids, mask, *more):
    """Arrays [N L] of tokens cut to the longest text, or a little behind it, so that few programs are compiled."""
    longest, length = int(mask.sum(axis=1).max(initial=1)), SHORTEST_TEXT
    while length < longest:
        length *= 2
    return tuple(x[:, :length] for x in (ids, mask, *more))
