"""Fine-tuning on mini-MIAS: density (F, G, D), or abnormal against normal; 5 folds by patient. Any folder of its films.

    python -m mammoclip_jax.prepare --source=mias --root=MIAS --out=data/mias --geometry=fit --height=224 --width=144
    python -m mammoclip_jax.finetune --config=configs/mias_finetune.py:density --workdir=runs/mias \
        --config.data.folders.mias=data/mias --config.warm_start.image.weights=WEIGHTS

WEIGHTS is EfficientNet-Lite0 of ImageNet (docs/probe.md says where it comes from); without it the encoder starts from
random numbers. The data and the folds are those of configs/mias.py, a linear probe.
"""

from mammoclip_jax.config import defaults

LABELS = {"density": ("F", "G", "D"), "abnormal": ("abnormal",)}


def get_config(label="density"):
    config = defaults()
    config.name = f"mini-MIAS: {label}, fine-tuned"
    config.cpu_devices = 2
    config.data.folders.mias = "data/mias"
    config.data.flip_horizontal = config.data.flip_vertical = 0.5
    config.image.update(mean=0.449, std=0.226, channels=3, intensity="range")  # as the ImageNet weights want it
    config.augment.update(affine_probability=0.5, rotate=15.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)

    config.model.image.update(name="efficientnet", variant="lite0", batch_norm_momentum=0.9)
    config.model.labels = LABELS[label]
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    # Batch statistics stay those of ImageNet: a batch of 16 films says little of them (docs/finetune.md).
    config.task.update(kind="classifier", encoder="eval", folds=5, fold=-1)
    if label == "density":
        config.model.activation, config.task.label = "softmax", "density"
    metric = "density/macro_auroc_image" if label == "density" else "abnormal/auroc_image"
    config.task.monitor = f"eval/mias/classification/{metric}"

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 16, 80, 8
    train.lr, train.layer_decay, train.weight_decay, train.clip_norm = 3e-4, 0.9, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every, train.checkpoint_every, train.log_every = 20, 40, 10
    config.evaluate.validation_evaluators.classification = dict(resamples=0)
    config.evaluate.evaluators.classification = dict(choose_on="val")
    return config
