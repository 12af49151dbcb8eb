"""Detection on phantom exams: a RetinaNet finds masses and calcifications.

    python -m mammoclip_jax.finetune --config=configs/phantom_detector.py --workdir=runs/detector
    python -m mammoclip_jax.finetune --config=configs/phantom_detector.py --workdir=runs/frozen \
        --config.warm_start.image.weights=runs/demo --config.model.frozen='("image",)' --config.task.encoder=eval

Variants on the demo's canvas: `:factor` learns from the boxes that attributes find without any (runs/factor, of
configs/phantom_factor.py), `:small` from the annotated ones, to be held against it.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

GEOMETRY = dict(geometry="fit", height=320, width=224, intensity="voi", bits=8)
VARIANTS = ("boxes", "small", "factor")


def get_config(variant="boxes"):
    check_name(variant, VARIANTS, "variant of phantom_detector")
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
    if variant != "boxes":
        data.prepare.phantom.update(height=192, width=128, options=dict(val_fraction=0.05))
        config.model.input_size = (384, 256)  # twice the canvas: the smallest anchor is larger than most calcifications
        config.model.image.pooling = "max"  # as the demo's, whose encoder it starts from
        config.warm_start.image.weights = "runs/demo"
    if variant == "factor":
        data.regions.make.factor = dict(method="factor", model="runs/factor")
        data.regions.sources = ("factor",)
        config.task.monitor = ""  # boxes of the validation would choose the state
    return config
