"""GLAM's term on phantoms whose lesions lie as deep in both views, from random weights (docs/losses.md has the figures).

    python -m mammoclip_jax.pretrain --config=configs/phantom_glam.py --workdir=runs/phantom_glam

The demo's towers and steps. MLO views are turned upright, both views of a breast have one scale, and the affine map that
would shift them against one another is off.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    config.name = "GLAM on phantom exams"
    data = config.data
    del data.folders.cbis_ddsm, data.prepare.cbis_ddsm
    del config.evaluate.evaluators.films
    data.phantom.phantom.update(perpendicular=True)
    data.prepare.phantom.update(upright=True, scale="breast")
    data.slots = ("CC", "MLO")
    config.augment.affine_probability = 0.0
    config.model.heads.cross_view = dict(stage="stage3", cell=(4, 4))
    config.losses = dict(
        view_text=dict(weight=1.0),
        other_view_text=dict(kind="view_text", view=1, weight=1.0),
        geometry=dict(weight=1.0, start_step=config.train.steps // 5),
    )
    config.evaluate.evaluators.correspondence = dict(folders=("phantom",))
    return config
