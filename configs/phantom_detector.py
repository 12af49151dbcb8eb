"""Detection on phantom exams: a RetinaNet finds masses and calcifications.

    python -m mammoclip_jax.finetune --config=configs/phantom_detector.py --workdir=runs/detector
    python -m mammoclip_jax.finetune --config=configs/phantom_detector.py --workdir=runs/frozen \
        --config.warm_start.image.weights=runs/demo --config.model.frozen='("image",)' --config.task.encoder=eval
"""

from mammoclip_jax.config import defaults

GEOMETRY = dict(geometry="fit", height=320, width=224, intensity="voi", bits=8)


def get_config():
    config = defaults()
    config.name = "Phantom exams: boxes of masses and calcifications"
    config.cpu_devices = 2
    data = config.data
    data.folders.phantom = "{workdir}/data/phantom"
    data.phantom.phantom = dict(out="{workdir}/exams", exams=300, height=640, width=512, seed=1)
    data.prepare.phantom = dict(source="phantom", root="{workdir}/exams", options=dict(val_fraction=0.1), **GEOMETRY)
    data.flip_horizontal = data.flip_vertical = 0.5
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)

    config.model.image.update(
        name="efficientnet",
        variant="b0",
        width=0.5,
        depth=0.5,
        drop_rate=0.0,
        drop_connect_rate=0.0,
        batch_norm_momentum=0.9,
    )
    config.model.update(labels=("mass", "calcification"), stages=("stage3", "stage5", "head"), features=64)
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    config.warm_start.texts = dict(weights="", load=("texts/prompts",))  # of config.model.text_classifier
    config.task.kind = "detector"
    config.task.monitor = "eval/phantom/detection/mass/ap@0.5"

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 16, 360, 36
    train.lr, train.weight_decay, train.clip_norm = 2e-3, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every, train.checkpoint_every = 90, 90
    config.evaluate.validation_evaluators.detection = dict(resamples=0)
    config.evaluate.evaluators.detection = dict(sanity=True)
    return config
