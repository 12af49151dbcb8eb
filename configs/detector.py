"""A detector of your own boxes, on your own data, from published or own weights: everything comes from flags.

    python -m mammoclip_jax.finetune --config=configs/detector.py:mass --workdir=runs/masses \
        --config.data.folders.own=data/mine --config.warm_start.image.weights=models/b2
    python -m mammoclip_jax.finetune --config=configs/detector.py:mass,calcification --workdir=runs/findings ...

Behind the colon stand the labels of the boxes. Data, encoder and weights are those of configs/classifier.py.
"""

import runpy
from pathlib import Path

from mammoclip_jax.config import defaults


def get_config(labels="mass"):
    published = runpy.run_path(str(Path(__file__).with_name("mammoclip_b2.py")))["get_config"]()
    config = defaults()
    config.name = f"Detector: {labels}"
    config.data.folders.own = "data/own"
    config.image, config.model.image = published.image, published.model.image
    config.data.flip_horizontal = config.data.flip_vertical = 0.5
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)
    config.model.update(labels=tuple(labels.split(",")), stages=("stage3", "stage5", "head"))
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    config.task.kind = "detector"
    config.task.monitor = f"eval/own/detection/{config.model.labels[0]}/ap@0.5"
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 8, 2_000, 200
    train.lr, train.weight_decay, train.clip_norm = 3e-4, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every = train.checkpoint_every = 200
    config.evaluate.validation_evaluators.detection = dict(resamples=0)
    config.evaluate.evaluators.detection = dict(sanity=True)
    return config
