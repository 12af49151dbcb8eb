"""GLAM (Du et al. 2025, arXiv:2509.10344): MaMA's towers with a BERT, and CC and MLO aligned by their geometry.

    python -m mammoclip_jax.prepare --source=embed --root=DIR --out=data/embed_upright --geometry=fit --height=518 \
        --width=518 --upright=true --scale=breast
    python -m mammoclip_jax.pretrain --config=configs/glam.py --workdir=runs/glam \
        --config.warm_start.image.weights=facebook/dinov2-with-registers-base \
        --config.warm_start.text.weights=hf://emilyalsentzer/Bio_ClinicalBERT

MLO views are turned upright and both views of a breast have one scale, so that a column of patches is a depth from the
chest wall. What differs from the released code: its pooler of free queries, with which no geometry is left, is
`--config.model.heads.cross_view.pooling=attention`, and off; CC and MLO are always two views of a breast, where there the
slots hold two crops of one view half of the time; a breast with one view is in the terms of its text alone; no random
crops, which would shift the columns of the two views against one another.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("mama.py")))["get_config"]("bert")
    config.name = "GLAM"
    config.data.folders = dict(embed="data/embed_upright")
    config.data.partner.update(same_view=0.0, exam=0.0)
    config.data.slots = ("CC", "MLO")
    config.data.sentences = config.data.boxes = 0
    config.data.flip_horizontal = config.data.flip_vertical = 0.0
    config.data.flip_each_view = False
    config.augment.crop = (1.0, 1.0)
    config.model.heads = dict(cross_view=dict(stage="last", cell=(4, 4)))
    config.losses = dict(
        view_text=dict(weight=1.0),
        other_view_text=dict(kind="view_text", view=1, weight=1.0),
        geometry=dict(weight=1.0, start_step=config.losses.nt_xent.start_step),
    )
    return config
