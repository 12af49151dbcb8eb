"""MaMA's terms on phantoms, from random weights, beside Mammo-CLIP's loss (docs/multiview.md has the figures).

    python -m mammoclip_jax.pretrain --config=configs/phantom_mama.py --workdir=runs/phantom_mama
    python -m mammoclip_jax.pretrain --config=configs/phantom_mama.py:mammo_clip --workdir=runs/phantom_mammo_clip

The demo's towers on phantoms whose lesions lie as deep in both views; MLO views are turned upright, and both views of a
breast have one scale. configs/phantom_glam.py has the same data and steps.
"""

import runpy
from pathlib import Path

from mammoclip_jax.names import check_name

STEPS = 400


def phantoms():
    """The demo's config with other phantoms, without its films, and without a loss."""
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    data, evaluators = config.data, config.evaluate.evaluators
    del data.folders.cbis_ddsm, data.prepare.cbis_ddsm, evaluators.films, evaluators.saliency_grad_cam
    del config.losses.mammo_clip
    data.phantom.phantom.update(perpendicular=True)
    data.prepare.phantom.update(upright=True, scale="breast")
    config.train.update(steps=STEPS, warmup_steps=STEPS // 10, eval_every=STEPS)
    return config


def get_config(losses="mama"):
    check_name(losses, ("mama", "mammo_clip"), "variant of phantom_mama")
    config = phantoms()
    if losses == "mammo_clip":
        config.name = "Mammo-CLIP's loss on phantoms"
        config.losses.mammo_clip = dict(weight=1.0)
        return config
    config.name = "MaMA on phantoms"
    config.data.partner.update(same_view=0.5, exam=0.5)
    config.data.sentences = 12
    config.model.heads.simclr = dict(hidden=128, dim=128)
    config.model.heads.local = dict(stage="stage3", hidden=256, dim=128, slots=(0, 1), sentence="mean", lit=0.5)
    late = STEPS // 5  # as in the paper, 8,000 of 40,000
    config.losses = dict(
        view_text=dict(weight=0.5),
        partner_text=dict(kind="view_text", view=1, weight=0.5),
        nt_xent=dict(weight=0.5, start_step=late),
        local_alignment=dict(weight=0.25, start_step=late),
    )
    config.evaluate.evaluators.grounding = dict(
        folders=("phantom",),
        methods=(
            "local_alignment",
            dict(method="hires_cam", stage="stage2"),
            dict(method="brightness", options=dict(sigma=1.0), name="brightness_sharp"),
        ),
        sanity=True,
    )
    return config
