"""MaMA's terms on the demo's phantoms, from random weights (docs/losses.md has the figures).

    python -m mammoclip_jax.pretrain --config=configs/phantom_mama.py --workdir=runs/phantom_mama

The demo's towers, data and steps; units are exams, with a partner as MaMA draws it.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    config.name = "MaMA on phantom exams"
    data = config.data
    del data.folders.cbis_ddsm, data.prepare.cbis_ddsm
    del config.evaluate.evaluators.films
    data.partner.update(same_view=0.5, exam=0.5)
    data.sentences = 12
    config.model.heads.simclr = dict(hidden=128, dim=128)
    config.model.heads.local = dict(stage="stage3", hidden=256, dim=128, slots=(0, 1), sentence="mean", lit=0.5)
    late = config.train.steps // 5  # as in the paper, 8,000 of 40,000
    config.losses = dict(
        view_text=dict(weight=1.0),
        partner_text=dict(kind="view_text", view=1, weight=1.0, start_step=late),
        nt_xent=dict(weight=1.0, start_step=late),
        local_alignment=dict(weight=1.0, start_step=late),
    )
    return config
