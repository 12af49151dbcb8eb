"""DINOv2's ViT-B/14 with four registers and BERT-base at 1022 x 1022: MaMA's image tower (arXiv:2409.18119), which that
paper runs at 518 x 518, at four times as many tokens. No paper's recipe: losses and optimiser are Mammo-CLIP's.

    python -m mammoclip_jax.prepare --source=report_csv --root=DIR --out=data/reports --geometry=fit \
        --height=1022 --width=1022
    python -m mammoclip_jax.pretrain --config=configs/clip_vit_b14.py --workdir=runs/clip_vit_b14 \
        --config.warm_start.image.weights=facebook/dinov2-with-registers-base \
        --config.warm_start.text.weights=hf://emilyalsentzer/Bio_ClinicalBERT

`--config=configs/clip_vit_b14.py:tpu` computes in bfloat16, the text encoder's blocks again, and attention in a kernel
for TPUs that leaves no weights in memory.
"""

import runpy
from pathlib import Path


def get_config(hardware=""):
    config = runpy.run_path(str(Path(__file__).with_name("mammoclip_b5.py")))["get_config"](hardware)
    config.name = "CLIP ViT-B/14"
    config.model.image = dict(name="dinov2", variant="base", registers=4, pooling="all", remat="block")
    if hardware == "tpu":
        config.model.image.attention = "flash"
    return config
