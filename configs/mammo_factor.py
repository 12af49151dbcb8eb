"""Mammo-FActOR on VinDr-Mammo: masses and calcifications from labels of images, without boxes (arXiv:2405.12255, section 2.2).

    python -m mammoclip_jax.prepare --source=vindr --root=DIR --out=data/vindr --geometry=stretch \
        --intensity=published --crop=published --height=1520 --width=912
    python -m mammoclip_jax.finetune --config=configs/mammo_factor.py:encoder=b5 --workdir=runs/factor \
        --config.warm_start.encoder.weights=b5-model-best-epoch-7.tar

encoder=b5 or b2. As published: temperature .007, AdamW at 1e-4 with torch's decay of .01, up to 20 epochs of batches of 8,
adapters of the last map (48 x 29 cells). protocol=published stops after 5 epochs without a better one on the test split, as the
notebook; protocol=default chooses the epoch on the validation part. What differs, because the released code is wrong there:
channels and attributes are not mixed up, the encoder's statistics are frozen too, nothing is added to the denominators, and
nothing overflows.

Beyond the paper: stride=16 or 8, a finer grid of the late stages; stages=stage3 (or stage5+head, several) instead of the last
one, for what is small; code=16, adapters that know which channel they see.

The maps of all training images are computed once, into the work folder (48 x 29 x 2048 floats: 11 MB an image);
--config.task.cached_maps=False computes them at every step.
"""

from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes
from mammoclip_jax.reproduction.arguments import config_argument

IMAGES = {"published": 16_000, "default": 14_400}  # training images: all, or without a tenth for validation
EPOCHS, BATCH_SIZE, PATIENCE = 20, 8, 5
LABELS = ("mass", "suspicious_calcification")


def get_config(argument=""):
    asked = config_argument(argument, encoder="b5", protocol="default", stages="head", stride=32, code=0)
    check_name(asked.encoder, ("b5", "b2"), "encoder")
    config = recipes.start(f"Mammo-FActOR {asked.encoder}, {asked.protocol} protocol", "vindr")
    config.model.image = recipes.ENCODERS[asked.encoder] | (
        {"output_stride": asked.stride} if asked.stride != 32 else {}
    )
    config.model.update(labels=LABELS, stages=tuple(asked.stages.split("+")))
    config.model.attributes.update(dim=512, prompts="ensemble", channel_code=asked.code)
    config.warm_start.encoder = dict(
        weights=f"{asked.encoder}-model-best-epoch-7.tar", load=("image_encoder/.*", "attributes/dictionary")
    )
    config.task.update(kind="attributes", temperature=0.007, patience=PATIENCE)
    epoch = IMAGES[asked.protocol] // BATCH_SIZE
    config.train.update(
        batch_size=BATCH_SIZE,
        steps=EPOCHS * epoch,
        warmup_steps=0,
        schedule="constant",
        lr=1e-4,
        weight_decay=0.01,
        eval_every=epoch,
        checkpoint_every=epoch,
    )
    config.evaluate.evaluators.classification = dict()
    config.evaluate.evaluators.localisation = dict()
    recipes.choose_state(config, "vindr", "classification", "mass/auroc_image", asked.protocol)
    return config
