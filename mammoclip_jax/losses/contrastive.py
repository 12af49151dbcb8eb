"""InfoNCE between two sets of unit vectors, and the two-term CLIP loss.

Written as plain array programs over the global batch: under `jit` with rows sharded over the mesh XLA gathers the
keys and every device computes its rows of logits, so values and gradients are those of one device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.types import Batch, Embeddings


def info_nce(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of the rows of `logit_scale * queries @ keys.T`, the target of row i being column i.

    InfoNCE of van den Oord et al. 2018 (arXiv:1807.03748, eq. 4). With `label_smoothing` e the target is
    1 - e + e/B on the diagonal and e/B elsewhere, as torch's CrossEntropyLoss has it.
    """
    logits = logit_scale * jnp.matmul(queries, keys.T, precision="highest")
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    positive = jnp.diagonal(log_probs).mean()
    if label_smoothing:
        positive = (1 - label_smoothing) * positive + label_smoothing * log_probs.mean()
    return -positive


def retrieval_accuracy(queries: Float[Array, "B D"], keys: Float[Array, "B D"]) -> Float[Array, ""]:
    """Share of rows whose most similar key is their own: what the contrastive loss is after."""
    similarity = jnp.matmul(queries, keys.T, precision="highest")
    return (similarity.argmax(-1) == jnp.arange(similarity.shape[0])).mean()


def clip(embeddings: Embeddings, batch: Batch, mesh, *, label_smoothing: float = 0.0):
    """The two-term CLIP loss of the first view and the first text (Radford et al. 2021, arXiv:2103.00020, fig. 3)."""
    del batch, mesh
    image, text = embeddings.image[:, 0], embeddings.text[:, 0]
    image_to_text = info_nce(image, text, embeddings.logit_scale, label_smoothing=label_smoothing)
    text_to_image = info_nce(text, image, embeddings.logit_scale, label_smoothing=label_smoothing)
    metrics = {
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
        "accuracy": retrieval_accuracy(image, text),
    }
    return (image_to_text + text_to_image) / 2, metrics
