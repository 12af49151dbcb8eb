"""GLAM's term on phantoms, from random weights, beside Mammo-CLIP's loss (docs/multiview.md has the figures).

    python -m mammoclip_jax.pretrain --config=configs/phantom_glam.py --workdir=runs/phantom_glam

The data, towers and steps of configs/phantom_mama.py, without the shear that would move a column of one view away from
that of the other. The affine map keeps the rest: without any, the images are learnt by heart in 400 steps.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("phantom_mama.py")))["phantoms"]()
    config.name = "GLAM on phantoms"
    config.data.slots = ("CC", "MLO")
    config.augment.update(shear=0.0)
    config.model.heads.cross_view = dict(stage="stage3", cell=(4, 4))
    config.losses = dict(
        view_text=dict(weight=0.5),
        other_view_text=dict(kind="view_text", view=1, weight=0.5),
        geometry=dict(weight=0.5, start_step=config.train.steps // 5),
    )
    config.evaluate.evaluators.correspondence = dict(folders=("phantom",))
    return config
