"""Regions and concepts on the demo's phantoms, from random weights (RegionCLIP's contrast, arXiv:2112.09106).

    python -m mammoclip_jax.pretrain --config=configs/phantom_region.py --workdir=runs/region

The demo's towers, data and steps. Beside the image-text loss, the annotated boxes and places on the breast beside them are
told apart by the concepts mass, calcification and background; the image is one more region of the same head. Variants, on
the same data for the same steps: `:global` the image-text loss alone, `:clip` CLIP's objective, `:medclip` MedCLIP's.
"""

import runpy
from pathlib import Path

from mammoclip_jax.names import check_name

VARIANTS = ("regions", "global", "clip", "medclip")


def get_config(variant="regions"):
    check_name(variant, VARIANTS, "variant of phantom_region")
    config = runpy.run_path(str(Path(__file__).with_name("demo.py")))["get_config"]()
    config.name = f"Regions on phantoms: {variant}"
    data, model, losses = config.data, config.model, config.losses
    del data.folders.cbis_ddsm, data.prepare.cbis_ddsm
    del config.evaluate.evaluators.films
    if variant == "regions":
        data.regions.update(places=4, sources=("boxes", "sliding"), concepts="phantom", background=True)
        model.heads.regions = dict(stages=("stage3", "stage5"), pool="max", hidden=256, dim=128)
        losses.region_concept = dict(weight=0.5, temperature=0.1)
    return config
