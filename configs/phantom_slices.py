"""A classifier that falls for a shortcut, found out in words and repaired: error slices on phantoms.

    python -m mammoclip_jax.slices --config=configs/phantom_slices.py --workdir=runs/slices --json=runs/slices/figures.json
    python -m mammoclip_jax.slices --config=configs/phantom_slices.py:none --workdir=runs/no_shortcut

In the training breasts a ring on the skin, as radiographers put on moles, is there where a mass is and only there; in the
breasts of validation and test it says nothing. The classifier learns the ring. With `:none` the ring says nothing in training
either. Masses are conspicuous and calcifications absent, so that the classifier of `:none` has no weak place of its own:
whatever is found there is a false alarm. `:language` is the dual encoder whose space the errors are described in: it learns
from reports of another set of phantoms, in which the ring says nothing. The classifier starts from its image encoder, as
Mammo-CLIP's classifiers do.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

GEOMETRY = dict(geometry="fit", height=192, width=128, intensity="voi", bits=8)
VARIANTS = ("shortcut", "none", "language")
TEST, VALIDATION = 0.25, 0.35  # of the patients


def get_config(variant="shortcut"):
    check_name(variant, VARIANTS, "variant of phantom_slices")
    config = defaults()
    config.name = {
        "shortcut": "Phantoms with a shortcut: masses, each with a ring on the skin",
        "none": "Phantoms with rings that say nothing: masses",
        "language": "Phantoms with rings that say nothing: images and reports",
    }[variant]
    config.cpu_devices = 2
    data, model, train = config.data, config.model, config.train
    data.folders.phantom = "{workdir}/data/phantom"
    held_out = TEST + VALIDATION
    data.phantom.phantom = dict(
        out="{workdir}/exams",
        exams=300 if variant == "language" else 480,
        height=640,
        width=512,
        seed=2 if variant == "language" else 1,
        mass_prevalence=0.5,
        calcification_prevalence=0.0,
        contrast=1.5,
        shortcut="mass",
        shortcut_share=1.0 if variant == "shortcut" else 0.5,
        shortcut_held_out=held_out,
    )
    options = dict(test_fraction=TEST, val_fraction=VALIDATION)
    if variant == "language":  # it tests nothing: nearly all of its exams are to learn from
        data.phantom.phantom.shortcut_held_out = 0.1
        options = dict(test_fraction=0.05, val_fraction=0.05)
    data.prepare.phantom = dict(source="phantom", root="{workdir}/exams", options=options, **GEOMETRY)
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1))
    train.batch_size, train.weight_decay, train.clip_norm = 32, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    model.image.update(
        name="efficientnet",
        variant="b0",
        width=0.5,
        depth=0.5,
        pooling="max",
        drop_rate=0.0,
        drop_connect_rate=0.0,
        batch_norm_momentum=0.9,
    )
    if variant == "language":
        _dual_encoder(config)
        return config

    data.flip_horizontal = 0.5  # texts say the side, so the dual encoder sees none flipped
    model.labels = ("mass",)
    config.task.update(kind="classifier", pos_weight="balanced")
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))
    train.lr, train.steps, train.warmup_steps, train.eval_every, train.checkpoint_every = 1e-3, 150, 15, 75, 50
    config.evaluate.validation_evaluators.classification = dict(resamples=0)
    config.evaluate.evaluators.classification = dict(choose_on="val")
    config.slices.update(language="language", start="image", dataset="phantom", label="mass", known="skin_marker")
    return config


def _dual_encoder(config):
    """The demo's text tower and steps."""
    data, model, train = config.data, config.model, config.train
    data.text_length = 96
    data.shuffle_sentences = 0.5
    model.text.update(
        name="bert",
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model.pooling, model.dim = "mean", 128
    config.losses.mammo_clip = dict(weight=1.0)
    train.lr, train.steps, train.warmup_steps, train.eval_every, train.checkpoint_every = 3e-3, 400, 40, 200, 50
    config.evaluate.validation_evaluators.zero_shot = dict(resamples=0, prompts="phantom", labels=("mass",))
    config.evaluate.evaluators.zero_shot = dict(prompts="phantom", labels=("mass",))
