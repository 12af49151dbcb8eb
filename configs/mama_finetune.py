"""MaMA's full fine-tuning by labels: BI-RADS of 7 classes, density of 4, or cancer (RSNA).

    python -m mammoclip_jax.finetune --config=configs/mama_finetune.py:birads --workdir=runs/mama_birads \
        --config.warm_start.image.weights=runs/mama
    python -m mammoclip_jax.finetune --config=configs/mama_finetune.py:density --workdir=runs/mama_density ...
    python -m mammoclip_jax.finetune --config=configs/mama_finetune.py:cancer --workdir=runs/mama_cancer ...

The data are those of configs/mama.py, for cancer `--source=rsna --out=data/rsna` prepared alike. configs/mama_probe.py is
the linear probe. As released (scripts/fft_pretrained.sh): SGD, momentum .9, rate 5e-4 to 1e-5 by a cosine, 100 steps of
warm-up, decay 1e-3, 8,000 steps of 36 x 2 images, each class drawn equally often, the augmentation of the pretraining.

What differs: float32 for bf16-true; an epoch of a class shows each of its images once, where there they are drawn with
replacement; the aspect is kept; the state is chosen on the validation part, where the released RSNA code has no other than
the test part; all of the test part is scored, not a balanced tenth; probabilities go into the AUROC once, not through a
second softmax. A crop of a tenth of an image may lack what the label says, here as there: --config.augment.crop="(0.5, 1.0)".
"""

import runpy
from pathlib import Path

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

LABELS = {"birads": tuple("0123456"), "density": tuple("ABCD"), "cancer": tuple("01")}


def get_config(label="birads"):
    check_name(label, LABELS, "label of MaMA's protocols")
    mama = runpy.run_path(str(Path(__file__).with_name("mama.py")))["get_config"]()
    config = defaults()
    config.name, config.seed = f"MaMA: {label}, fine-tuned", mama.seed
    data = "rsna" if label == "cancer" else "embed"
    config.data.folders[data] = f"data/{data}"
    config.data.flip_horizontal, config.data.flip_vertical = mama.data.flip_horizontal, mama.data.flip_vertical
    config.image, config.augment, config.model.image = mama.image, mama.augment, mama.model.image
    config.warm_start.image = dict(weights="", load=("image_encoder/.*",))

    config.model.labels, config.model.activation = LABELS[label], "softmax"
    metric = "auroc_image" if label == "cancer" else "macro_auroc_image"
    config.task.update(
        kind="classifier", label=label, sampling="balanced", monitor=f"eval/{data}/classification/{label}/{metric}"
    )
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 72, 8_000, 100
    train.optimizer, train.momentum, train.weight_decay = "sgd", 0.9, 1e-3
    train.lr, train.min_lr = 5e-4, 1e-5
    train.frozen = mama.train.frozen
    train.eval_every = train.checkpoint_every = 1_000
    config.evaluate.validation_evaluators.classification = dict(resamples=0)
    config.evaluate.evaluators.classification = dict(choose_on="val")
    return config
