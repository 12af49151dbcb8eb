"""Mammo-CLIP with EfficientNet-B5 at 1520 x 912: the published pretraining recipe (Ghosh et al. 2024, arXiv:2405.12255).

    python -m mammoclip_jax.prepare --source=report_csv --root=DIR --out=data/reports --geometry=stretch \
        --intensity=published --crop=published --height=1520 --width=912
    python -m mammoclip_jax.pretrain --config=configs/mammoclip_b5.py --workdir=runs/mammoclip_b5 \
        --config.warm_start.image.weights=efficientnet-b5-b6417697.pth \
        --config.warm_start.text.weights=hf://emilyalsentzer/Bio_ClinicalBERT

Row "Mammo-CLIP B5 (UPMC)" of the paper's tables. Its data (13,829 patients of UPMC) are not public: bring your own.
What differs from the released code, because that is wrong there: the affine's angles are drawn from +-20 degrees and
not fixed at +20, flips are told to the text, empty reports are no positives. The elastic warp moves no pixel by half
a pixel and is left out. The paper starts both towers from public weights: name yours as above (efficientnet_pytorch's
file, a folder or hub name of the BERT), or both start at random.

`--config=configs/mammoclip_b5.py:tpu` is the same training for TPUs: bfloat16, maps laid out for 128 lanes, and so much
computed again that eight images fit a v5e chip (docs/compile.md; measured without the affine augmentation).
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

BREASTS = 10_140  # of the training split: 25,355 images, 80 % of them, two views a breast
EPOCHS = 10


def get_config(hardware=""):
    config = defaults()
    config.name = "Mammo-CLIP B5"
    config.seed = 10
    config.data.folders.reports = "data/reports"
    config.data.tokenizer = "hf://emilyalsentzer/Bio_ClinicalBERT"
    config.data.text_length = 256
    config.data.flip_horizontal = 0.5
    config.data.flip_vertical = 0.5
    config.augment.update(affine_probability=0.5, rotate=20.0, translate=0.1, scale=(0.8, 1.2), shear=20.0)

    # remat, scan and lanes change no result (docs/training.md).
    config.model.image.update(name="efficientnet", variant="b5", remat="none", scan=False, lanes=False, kernels="auto")
    config.model.text.update(
        name="bert", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, remat="none"
    )
    if hardware:
        check_name(hardware, ("tpu",), "hardware")
        config.model.dtype = "bfloat16"
        config.model.image.update(remat="expand", lanes=True)
        config.model.text.remat = "block"
    config.model.dim = 512
    config.warm_start.image = dict(weights="")
    config.warm_start.text = dict(weights="")

    config.losses.mammo_clip = dict(weight=1.0, image_text=1.0, image_image=1.0, text_text=0.5)
    train = config.train
    train.batch_size = 32  # 8 on each of 4 GPUs
    train.warmup_steps = BREASTS // train.batch_size
    train.steps = EPOCHS * train.warmup_steps
    train.lr, train.weight_decay, train.logit_scale_max = 5e-5, 1e-4, 0.0

    config.evaluate.evaluators.zero_shot = dict(prompts="mammo_clip")
    config.evaluate.evaluators.retrieval = dict()
    return config
