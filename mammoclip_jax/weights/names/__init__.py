"""Namings of each encoder's arrays in PyTorch state dicts, by encoder and by who writes them so.

To add one: write a `Naming` (see weights/naming.py) in a file here and give it a line in `NAMINGS`.
"""

from collections.abc import Iterable

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import load
from mammoclip_jax.weights.naming import Naming

# "encoder" (transformers' names) or "encoder/who": module.attribute. Looked for in this order.
NAMINGS = {
    "efficientnet": "efficientnet.HUGGINGFACE",
    "efficientnet/lukemelas": "efficientnet.LUKEMELAS",
    "efficientnet/timm": "efficientnet_staged.TIMM",
    "efficientnet/torchvision": "efficientnet_staged.TORCHVISION",
    "clip_resnet/openai": "clip.OPENAI_RESNET",
    "resnet": "resnet.HUGGINGFACE",
    "resnet/torchvision": "resnet.TORCHVISION",
    "convnext": "convnext.HUGGINGFACE",
    "convnext/authors": "convnext.AUTHORS",
    "convnext/timm": "convnext.TIMM",
    "swin": "swin.HUGGINGFACE",
    "clip_vit": "clip.HUGGINGFACE_VIT",
    "clip_vit/openai": "clip.OPENAI_VIT",
    "vit": "vit.HUGGINGFACE_VIT",
    "dinov2": "vit.HUGGINGFACE_DINOV2",
    "dinov2/authors": "vit.AUTHORS_DINOV2",
    "vit/timm": "vit.TIMM",
    "bert": "text.BERT",
    "modernbert": "text.MODERNBERT",
    "modernbert/mammo_fm": "text.MODERNBERT_NO_FINAL_NORM",
    "gpt2": "text.GPT2",
    "clip_text": "text.CLIP_TEXT",
    "clip_text/openai": "clip.OPENAI_TEXT",
}


def naming(name: str) -> Naming:
    """The naming of that name in `NAMINGS`."""
    return load(__name__, NAMINGS, name, "naming of an encoder's arrays")


def detect(keys: Iterable[str]) -> str:
    """The first naming in `NAMINGS` all of whose signs are among the keys.

    Raises:
        UserError: there is none.
    """
    keys = set(keys)
    for name in NAMINGS:
        if keys.issuperset(naming(name).signs):
            return name
    raise UserError(
        f"no encoder known here names its arrays like this: {', '.join(sorted(keys)[:5])}, ... "
        f"Known: {', '.join(NAMINGS)}."
    )
