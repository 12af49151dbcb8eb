"""What the configs in configs/reproduce share: the augmentation, epochs as steps, which state is kept, encoders."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import task_of

ENCODERS = {
    "b5": dict(name="efficientnet", variant="b5"),
    "b2": dict(name="efficientnet", variant="b2"),
    "rn50": dict(name="resnet", variant="50"),
}
# Stages that the detector's C3, C4 and C5 are; the block is published (Detectors/retinanet/detector_model.py).
_C3_TO_C5 = {"b5": ("stage5", "block37", "head"), "b2": ("stage5", "block21", "head")}


def start(name: str, dataset: str) -> ConfigDict:
    """The defaults, with the data set folder `data/DATASET` and the seed of the reference."""
    config = defaults()
    config.name, config.seed = name, 10
    config.data.folders[dataset] = f"data/{dataset}"
    return config


def train(config: ConfigDict, encoder: str, *, images: int, epochs: int, batch_size: int, fraction: int = 100) -> None:
    """The optimiser and augmentation of all published runs; an epoch is `fraction` per cent of `images`.

    One epoch of warm-up, an evaluation each epoch. Weights of config.warm_start.image begin the image encoder.
    """
    config.data.flip_horizontal = config.data.flip_vertical = 0.5
    config.augment.update(affine_probability=0.5, rotate=20.0, translate=0.1, scale=(0.8, 1.2), shear=20.0)
    config.model.image = dict(ENCODERS[encoder])
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    config.task.fraction = fraction / 100
    epoch = max(round(images * fraction / 100) // batch_size, 1)
    config.train.update(
        batch_size=batch_size,
        steps=epochs * epoch,
        warmup_steps=epoch,
        lr=5e-5,
        weight_decay=1e-4,
        eval_every=epoch,
        checkpoint_every=epoch,
    )


def choose_state(config: ConfigDict, dataset: str, evaluator: str, metric: str, protocol: str) -> None:
    """The state with the best `metric` is kept: on the validation part, or as published on the test part itself."""
    config.evaluate.validation_split = "test" if protocol == "published" else "val"
    config.evaluate.validation_evaluators[evaluator] = dict(resamples=0)
    config.task.monitor = f"eval/{dataset}/{evaluator}/{metric}"


def detector_stages(config: ConfigDict, published: bool = True) -> None:
    """The maps of config.model.image that the pyramid takes; `published`: with the pads of the released detector.

    Raises:
        UserError: it is not known which these are.
    """
    image = config.model.image
    if image.name == "resnet":
        config.model.stages = ("stage2", "stage3", "stage4")
        return
    if image.name != "efficientnet":
        raise UserError(f"which maps of {image.name} a detector takes is not known: use a config of your own.")
    stages = _C3_TO_C5.get(image.get("variant"), ("stage3", "stage5", "head"))
    taps = tuple(int(stage.removeprefix("block")) for stage in stages if stage.startswith("block"))
    image.update(taps=taps, **({"pads": "detector"} if published else {}))
    config.model.stages = stages


def use_encoder(config: ConfigDict, model: ConfigDict, image: Mapping[str, Any]) -> None:
    """The run begins with the encoder of a model, config.model `model`, and its normalisation, config.image `image`.

    What the config's detector changes of the encoder stays changed.
    """
    published = config.model.image.get("pads") == "detector"
    with config.unlocked():
        config.model.image = model.image.to_dict()
        config.image.update(image)
    kind = task_of(config).MODEL
    if kind == "detector":
        detector_stages(config, published)
    if kind == "attributes":
        config.model.attributes.dim = model.dim
    use_weights(config, "")


def use_weights(config: ConfigDict, weights: str) -> None:
    """The run begins from these."""
    for entry in config.warm_start.values():
        entry.weights = weights
