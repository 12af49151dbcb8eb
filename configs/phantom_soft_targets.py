"""Soft targets on the demo's phantoms, from random weights: a text is as right for an image as their findings are alike.

    python -m mammoclip_jax.pretrain --config=configs/phantom_soft_targets.py --workdir=runs/soft_targets
    python -m mammoclip_jax.pretrain --config=configs/phantom_soft_targets.py:text --workdir=runs/soft_targets_text

The demo's towers, data and steps. The findings are the data set's labels; with `:text` they are read from the reports, and
the labels are not used. `--config.losses.soft_targets.pair=1 --config.losses.other.pair=1` has hard pairs: it is CLIP's loss.
"""

import runpy
from pathlib import Path

from mammoclip_jax.names import check_name


def get_config(source="labels"):
    check_name(source, ("labels", "text"), "variant of phantom_soft_targets")
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    config.name = f"Soft targets on phantoms, findings from the {source}"
    data = config.data
    del data.folders.cbis_ddsm, data.prepare.cbis_ddsm
    del config.evaluate.evaluators.films
    data.targets.update(source=source, fields=("mass", "calcification"))
    # Each text is as right for an image as any other of the same findings: a smaller share of the pair ranks its own text lower.
    soft = dict(kind="soft_targets", weight=0.5, pair=0.65, temperature=0.2)
    config.losses = dict(soft_targets=dict(view=0, **soft), other=dict(view=1, **soft))
    return config
