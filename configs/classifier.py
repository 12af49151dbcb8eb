"""A classifier of your own labels, on your own data, from published or own weights: everything comes from flags.

    python -m mammoclip_jax.finetune --config=configs/classifier.py:cancer --workdir=runs/cancer \
        --config.data.folders.own=data/mine --config.warm_start.image.weights=models/b2
    python -m mammoclip_jax.finetune --config=configs/classifier.py:mass,calcification --workdir=runs/findings ...
    python -m mammoclip_jax.finetune --config=configs/classifier.py:density=A,B,C,D --workdir=runs/density ...

Behind the colon stand yes/no labels, or one label and its classes. data/mine is what `prepare` made (docs/own_data.md). The
encoder is Mammo-CLIP's EfficientNet-B2, whose weights `weights import` reads; `--config.model.image.variant=b5` for B5's.
Without weights it starts from random numbers, and needs more data and steps.
"""

import runpy
from pathlib import Path

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError


def get_config(labels="cancer"):
    name, _, classes = labels.partition("=")
    if not name or (classes and len(classes.split(",")) < 2):
        raise UserError(f"classifier.py:{labels} should be labels (mass,calcification) or a label=class,class,...")
    published = runpy.run_path(str(Path(__file__).with_name("mammoclip_b2.py")))["get_config"]()
    config = defaults()
    config.name = f"Classifier: {labels}"
    config.data.folders.own = "data/own"
    config.image, config.model.image = published.image, published.model.image
    config.data.flip_horizontal = config.data.flip_vertical = 0.5
    config.augment.update(affine_probability=0.5, rotate=15.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    config.task.kind = "classifier"
    if classes:
        config.model.labels, config.model.activation, config.task.label = tuple(classes.split(",")), "softmax", name
        config.task.monitor = f"eval/own/classification/{name}/macro_auroc_image"
    else:
        config.model.labels = tuple(name.split(","))
        config.task.pos_weight = "balanced"
        config.task.monitor = f"eval/own/classification/{config.model.labels[0]}/auroc_image"
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 16, 2_000, 200
    train.lr, train.layer_decay, train.weight_decay, train.clip_norm = 3e-4, 0.9, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every = train.checkpoint_every = 200
    config.evaluate.validation_evaluators.classification = dict(resamples=0)
    config.evaluate.evaluators.classification = dict(choose_on="val")
    return config
