"""Attributes that point, on the demo's phantoms: which channels of a frozen encoder show masses and calcifications, and where.

    bash launch/demo.sh                                                                 (the encoder, and the phantoms)
    python -m mammoclip_jax.finetune --config=configs/phantom_factor.py --workdir=runs/factor

The encoder, and the text tower that makes the attributes' vectors, are those of config.warm_start.encoder.weights. Variants:
`:stage3` is Mammo-FActOR's one late stage, `:stages` several at once, `:varied` stage2 of images that are flipped and moved at
every step, with smaller adapters: the encoder then runs at every step too.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

GEOMETRY = dict(geometry="fit", height=192, width=128, intensity="voi", bits=8)
STAGES = {"stage2": ("stage2",), "stage3": ("stage3",), "stages": ("stage2", "stage3"), "varied": ("stage2",)}


def get_config(variant="stage2"):
    check_name(variant, STAGES, "variant of phantom_factor")
    config = defaults()
    config.name = f"Attributes on phantoms: {variant}"
    config.cpu_devices = 2
    data = config.data
    data.folders.phantom = "{workdir}/data/phantom"
    data.phantom.phantom = dict(out="{workdir}/exams", exams=300, height=640, width=512, seed=1)
    data.prepare.phantom = dict(source="phantom", root="{workdir}/exams", options=dict(val_fraction=0.05), **GEOMETRY)
    config.image.channels = 1

    config.model.image.update(
        name="efficientnet",
        variant="b0",
        width=0.5,
        depth=0.5,
        pooling="max",
        drop_rate=0.0,
        drop_connect_rate=0.0,
        batch_norm_momentum=0.9,
    )
    config.model.update(labels=("mass", "calcification"), stages=STAGES[variant])
    config.model.attributes.update(dim=128, prompts="phantom")
    config.warm_start.encoder = dict(weights="runs/demo", load=("image_encoder/.*", "attributes/dictionary"))
    config.task.kind = "attributes"
    if variant == "varied":
        config.task.cached_maps = False
        config.model.attributes.hidden = 256
        data.flip_horizontal = data.flip_vertical = 0.5
        config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 32, 600, 60
    train.lr, train.weight_decay = 1e-3, 0.01
    train.no_decay = (r".*bias$",)
    train.checkpoint_every = 200
    config.evaluate.evaluators.classification = dict()
    encoder = config.warm_start.encoder.get_oneway_ref("weights")
    config.evaluate.evaluators.localisation = dict(dual_encoder=encoder, prompts="phantom")
    return config
