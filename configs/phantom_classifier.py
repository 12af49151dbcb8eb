"""Fine-tuning on phantom exams: which images show a mass, which calcifications?

    python -m mammoclip_jax.finetune --config=configs/phantom_classifier.py --workdir=runs/classifier

The encoder is a Lite one, without squeeze-and-excitation, its pooling is a generalised mean, and its last stages do not
stride: late maps stay local and fine, so that Grad-CAM has something to show.
"""

from mammoclip_jax.config import defaults

GEOMETRY = dict(geometry="fit", height=256, width=176, intensity="voi", bits=8)


def get_config():
    config = defaults()
    config.name = "Phantom exams: masses and calcifications"
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
        variant="lite0",
        width=0.5,
        depth=0.5,
        pooling="gem",
        output_stride=16,
        drop_rate=0.0,
        drop_connect_rate=0.0,
        batch_norm_momentum=0.9,
    )
    config.model.labels = ("mass", "calcification")
    config.task.update(
        kind="classifier", pos_weight="balanced", monitor="eval/phantom/classification/mass/auroc_image", patience=4
    )

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 32, 450, 45
    train.lr, train.weight_decay, train.clip_norm = 3e-3, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every, train.checkpoint_every = 75, 75
    config.evaluate.validation_evaluators.classification = dict(resamples=0)
    config.evaluate.evaluators.classification = dict(choose_on="val")
    config.evaluate.evaluators.saliency = dict(stage="head", sanity=True)
    return config
