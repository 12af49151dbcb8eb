"""A small classifier of phantom exams, to measure what mirrored looks, windows, ensembles and calibration are worth.

    for seed in 0 1 2; do
      python -m mammoclip_jax.finetune --config=configs/phantom_scores.py --workdir=runs/scores/$seed --config.seed=$seed
    done

The runs share the phantoms beside them, half of which are for validation and test; docs/scores.md has the rest.
"""

from mammoclip_jax.config import defaults

GEOMETRY = dict(geometry="fit", height=128, width=96, intensity="voi", bits=8)


def get_config():
    config = defaults()
    config.name = "Phantom exams: what a score is worth"
    data = config.data
    data.folders.phantom = "{workdir}/../phantom"
    data.phantom.phantom = dict(out="{workdir}/../exams", exams=400, height=320, width=256, seed=1, contrast=2.0)
    data.prepare.phantom = dict(
        source="phantom", root="{workdir}/../exams", options=dict(val_fraction=0.2, test_fraction=0.3), **GEOMETRY
    )
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
    config.task.update(kind="classifier", pos_weight="balanced")

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 32, 240, 24
    train.lr, train.weight_decay, train.clip_norm = 3e-3, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    config.evaluate.evaluators.classification = dict(choose_on="val", resamples=200)
    return config
