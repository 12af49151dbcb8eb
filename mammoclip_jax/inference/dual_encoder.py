"""Images and texts in one space."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mammoclip_jax import models
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.image_model import ImageModel
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
        return models.build(self.config.model, self._tokenize.vocab_size if self._tokenize else 0)

    def embed_image(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of preprocessed images, uint8 or uint16."""
        return self._batched(self._embed_image, np.asarray(images))

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of texts; what is longer than config.data.text_length is cut.

        Raises:
            UserError: the weights were imported without their tokenizer.
        """
        if self._tokenize is None:
            raise UserError(
                "these weights came without their tokenizer: import them again with --tokenizer=FOLDER, "
                "or give token ids to embed_tokens."
            )
        return self.embed_tokens(*self._tokenize.encode(list(texts), self.config.data.text_length))

    def embed_tokens(self, ids: Int[np.ndarray, "N L"], mask: Bool[np.ndarray, "N L"]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of token ids; mask is True for real tokens, which come first. Padding changes nothing."""
        ids, mask = np.asarray(ids, np.int32), np.asarray(mask, bool)
        longest, length = int(mask.sum(axis=1).max(initial=1)), SHORTEST_TEXT
        while length < longest:
            length *= 2  # few lengths, so that few programs are compiled
        length = min(length, ids.shape[1])
        return self._batched(self._embed_text, ids[:, :length], mask[:, :length])

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
        return self._batched(functools.partial(self._head_outputs, name), np.asarray(images))

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that was learnt: one over the temperature."""
        return float(np.exp(self._variables["params"]["logit_scale"]))

    def similarity(self, images: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "M D"]) -> np.ndarray:
        """Cosines [N, M] of unit vectors."""
        return np.asarray(images) @ np.asarray(texts).T

    def _directions(self, towards):
        texts = len(towards) and isinstance(towards[0], str)
        return self.embed_text(towards) if texts else super()._directions(towards)

    def _fresh(self, key):
        return init_variables(self._module, key, self._blank().shape[1:], self.config.data.text_length)

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_image(self, variables, images):
        return self._encode(variables, augment.eval_images(images, self._options))[0]

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
