"""Mammo-CLIP's multi-view loss over two views and two texts of each breast."""

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.contrastive import info_nce, retrieval_accuracy
from mammoclip_jax.types import Batch, Embeddings


def mammo_clip(
    embeddings: Embeddings,
    batch: Batch,
    mesh,
    *,
    image_text: float = 1.0,
    image_image: float = 1.0,
    text_text: float = 0.5,
    label_smoothing: float = 0.0,
):
    """L = image_text (i2t + t2i) / 2 + image_image ICL + text_text TCL (Ghosh et al. 2024, arXiv:2405.12255, sec. 2).

    i2t and t2i are means over the four pairs of a view and a text, ICL and TCL over the two directions between the
    views and between the texts. Label smoothing touches i2t and t2i only, as in the published code.
    The default weights are the published ones.

    Raises:
        UserError: the batch does not hold two views and two texts.
    """
    del batch, mesh
    views, texts = embeddings.image.shape[1], embeddings.text.shape[1]
    if (views, texts) != (2, 2):
        raise UserError(f"mammo_clip needs 2 views and 2 texts a breast, got {views} and {texts}: "
                        "set config.data.views and config.data.texts to 2.")
    scale = embeddings.logit_scale
    image = [embeddings.image[:, v] for v in range(2)]
    text = [embeddings.text[:, t] for t in range(2)]

    def between(queries, keys):
        return sum(info_nce(q, k, scale, label_smoothing=label_smoothing) for q in queries for k in keys) / 4

    def within(pair):
        return (info_nce(pair[0], pair[1], scale) + info_nce(pair[1], pair[0], scale)) / 2

    metrics = {
        "image_to_text": between(image, text),
        "text_to_image": between(text, image),
        "image_to_image": within(image),
        "text_to_text": within(text),
        "accuracy": retrieval_accuracy(image[0], text[0]),
    }
    loss = (image_text * (metrics["image_to_text"] + metrics["text_to_image"]) / 2
            + image_image * metrics["image_to_image"]
            + text_text * metrics["text_to_text"])
    return loss, metrics
