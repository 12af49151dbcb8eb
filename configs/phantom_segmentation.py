"""Segmentation on phantom exams: a small U-Net finds the breast, the pectoral muscle, masses and calcifications.

    python -m mammoclip_jax.finetune --config=configs/phantom_segmentation.py --workdir=runs/segmentation

Images keep what lies outside the breast, so that the network learns what is none. `:fpn` is a pyramid on an EfficientNet.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError

GEOMETRY = dict(geometry="fit", height=192, width=128, intensity="voi", bits=8, outside="kept")


def get_config(variant=""):
    if variant not in ("", "fpn"):
        raise UserError(f"configs/phantom_segmentation.py knows the variants '' and 'fpn', not {variant!r}.")
    config = defaults()
    config.name = "Phantom exams: masks of breast, muscle and lesions"
    config.cpu_devices = 2
    data = config.data
    data.folders.phantom = "{workdir}/data/phantom"
    data.phantom.phantom = dict(out="{workdir}/exams", exams=160, height=640, width=512, seed=1)
    data.prepare.phantom = dict(source="phantom", root="{workdir}/exams", options=dict(val_fraction=0.1), **GEOMETRY)
    data.flip_horizontal = data.flip_vertical = 0.5
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)
    config.augment.update(contrast=0.2, brightness=0.1)

    config.model.labels = ("breast", "pectoral_muscle", "mass", "calcification")
    if variant == "fpn":
        config.model.image.update(
            name="efficientnet",
            variant="b0",
            width=0.5,
            depth=0.5,
            drop_rate=0.0,
            drop_connect_rate=0.0,
            batch_norm_momentum=0.9,
        )
        config.model.update(stages=("stage3", "stage5", "head"), features=64)
    else:
        config.model.image.update(name="unet", width=8, depth=4)
    # Lesions fill less than 1 % of the pixels: without more weight they are not found at all in so few steps.
    config.task.update(kind="segmentation", pos_weight="root")

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 8, 500, 40
    train.lr, train.weight_decay, train.clip_norm = 4e-3, 0.01, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.checkpoint_every = 100
    config.evaluate.evaluators.segmentation = dict(gallery=20)
    return config
