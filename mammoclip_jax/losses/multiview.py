"""Mammo-CLIP's multi-view loss over two views and two texts of each breast."""

import functools

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.contrastive import duplicate_ids, info_nce
from mammoclip_jax.losses.pairs import there
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
    duplicates: str = "negative",
    form: str = "auto",
):
    """L = image_text (i2t + t2i) / 2 + image_image ICL + text_text TCL (Ghosh et al. 2024, arXiv:2405.12255, sec. 2).

    i2t and t2i are means over the four pairs of a view and a text, ICL and TCL over the two directions between the
    views and between the texts. Label smoothing touches i2t and t2i only, as in the published code.
    The default weights are the published ones. Rows whose texts are not their images' own count in ICL alone.

    Args:
        duplicates: how pairs of breasts with equal texts count ("negative", as published, "positive" or "ignore"; see
            `contrastive.info_nce`): with an image, where the text of the pair is the same; between texts, where they
            have any in common. Pairs of images are not touched.
        form: losses/forms.py.

    Raises:
        UserError: the batch does not hold two views and two texts.
    """
    views, texts = embeddings.image.shape[1], embeddings.text.shape[1]
    if (views, texts) != (2, 2):
        raise UserError(
            f"mammo_clip needs 2 views and 2 texts a breast, got {views} and {texts}: "
            "set config.data.views and config.data.texts to 2."
        )
    contrast = functools.partial(info_nce, logit_scale=embeddings.logit_scale, form=form, mesh=mesh)
    paired = functools.partial(contrast, mask=there(batch, more=("paired",)))
    image = [embeddings.image[:, v] for v in range(2)]
    text = [embeddings.text[:, t] for t in range(2)]
    ids = duplicate_ids(batch, duplicates)
    of_text = [None, None] if ids is None else [ids[:, 0], ids[:, 1]]

    pairs = [
        paired(image[v], text[t], ids=of_text[t], duplicates=duplicates, label_smoothing=label_smoothing)
        for v in range(2)
        for t in range(2)
    ]
    images = contrast(image[0], image[1], mask=there(batch))
    between_texts = paired(text[0], text[1], ids=ids, duplicates=duplicates)
    metrics = {
        "image_to_text": sum(pair.forward for pair in pairs) / 4,
        "text_to_image": sum(pair.backward for pair in pairs) / 4,
        "image_to_image": (images.forward + images.backward) / 2,
        "text_to_text": (between_texts.forward + between_texts.backward) / 2,
        "accuracy": pairs[0].accuracy,
    }
    loss = (
        image_text * (metrics["image_to_text"] + metrics["text_to_image"]) / 2
        + image_image * metrics["image_to_image"]
        + text_text * metrics["text_to_text"]
    )
    return loss, metrics
