"""A segmentation of your own masks, on your own data, from published or own weights: everything comes from flags.

    python -m mammoclip_jax.finetune --config=configs/segmentation.py:mass --workdir=runs/outlines \
        --config.data.folders.own=data/mine --config.warm_start.image.weights=models/b2
    python -m mammoclip_jax.finetune --config=configs/segmentation.py:breast,mass --workdir=runs/outlines ...

Behind the colon stand the channels of the masks. Data, encoder and weights are those of configs/classifier.py; a pyramid
on its stages says at a stride of 8 pixels what each shows.
"""

import runpy
from pathlib import Path

from mammoclip_jax.config import defaults


def get_config(channels="mass"):
    published = runpy.run_path(str(Path(__file__).with_name("mammoclip_b2.py")))["get_config"]()
    config = defaults()
    config.name = f"Segmentation: {channels}"
    config.data.folders.own = "data/own"
    config.image, config.model.image = published.image, published.model.image
    config.data.flip_horizontal = config.data.flip_vertical = 0.5
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)
    config.model.update(labels=tuple(channels.split(",")), stages=("stage3", "stage5", "head"))
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    # Lesions fill few pixels: without more weight they are found late, or not at all.
    config.task.update(kind="segmentation", pos_weight="root")
    config.task.monitor = f"eval/own/segmentation/{config.model.labels[0]}/dice"
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 8, 2_000, 200
    train.lr, train.weight_decay, train.clip_norm = 3e-4, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every = train.checkpoint_every = 200
    config.evaluate.validation_evaluators.segmentation = dict(resamples=0, baselines=False, gallery=0)
    config.evaluate.evaluators.segmentation = dict(gallery=20)
    return config
