"""A trained model for use: NumPy in, NumPy out, batched and jitted inside.

model = load("workdir")                    # or a model folder, a published file, a name on the hub
model.predict("exam_dir")
model.similarity(model.embed_image(pixels), model.embed_text(["a mass", "no mass"]))
"""

from mammoclip_jax.config import complete
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.attributes import Attributes
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.heads import Classifier, Detector, ImageEncoder
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.inference.segmenter import Segmenter
from mammoclip_jax.training import distributed
from mammoclip_jax.training.accelerators import warn_if_idle
from mammoclip_jax.weights.opening import open_weights

KINDS = {model.kind: model for model in (Attributes, Classifier, Detector, DualEncoder, ImageEncoder, Segmenter)}


def load(name, *, batch_size: int | None = None) -> ImageModel:
    """The model of a run or of one checkpoint in it (`workdir/checkpoints/STEP`), of a model folder, of a published
    file, or of that name on the hub.

    Args:
        batch_size: images or texts at a time on the devices; by default as many as have 8 million pixels, at most 32.
            No result depends on it.

    Raises:
        UserError: there is no such thing, or it is a text encoder alone.
    """
    variables, meta = open_weights(name)
    kind = meta["kind"]
    if kind not in KINDS:
        raise UserError(
            f"{name} holds a single encoder ({kind}), which has nothing to compare texts with: start a "
            "training from it with config.warm_start."
        )
    config = complete(meta["config"])
    distributed.enable_compilation_cache(config.compilation_cache)
    warn_if_idle()
    return KINDS[kind](variables, meta, meta["step"], batch_size=batch_size)
