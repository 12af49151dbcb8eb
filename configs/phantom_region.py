"""Regions and concepts on the demo's phantoms, from random weights (RegionCLIP's contrast, arXiv:2112.09106).

    python -m mammoclip_jax.pretrain --config=configs/phantom_region.py --workdir=runs/region

The demo's towers, data and steps. Beside Mammo-CLIP's loss the annotated boxes, and places on the breast that touch none, are
told apart by the concepts mass, calcification and background. Other objectives on the same data for the same steps: `:global`
is Mammo-CLIP's loss alone, `:clip` CLIP's, `:medclip` MedCLIP's (configs/phantom_soft_targets.py). `:teacher` learns of a table
of regions, by name `pseudo`, that the command `regions` made with an earlier run: see docs/regions.md.
"""

import runpy
from pathlib import Path

from mammoclip_jax.names import check_name

VARIANTS = ("regions", "global", "clip", "medclip", "teacher")


def get_config(variant="regions"):
    check_name(variant, VARIANTS, "variant of phantom_region")
    base = "phantom_soft_targets" if variant in ("clip", "medclip") else "demo"
    config = runpy.run_path(str(Path(__file__).with_name(f"{base}.py")))["get_config"]()
    config.name = f"Regions on phantoms: {variant}"
    data, model, losses = config.data, config.model, config.losses
    if base == "demo":
        del data.folders.cbis_ddsm, data.prepare.cbis_ddsm
        del config.evaluate.evaluators.films
    phantoms = dict(folders=("phantom",))
    for name in ("region_classification", "zero_shot_detection"):
        config.evaluate.evaluators[name] = dict(concepts="phantom", **phantoms)
    for name in ("region_grounding", "region_retrieval"):
        config.evaluate.evaluators[name] = phantoms
    if variant == "clip":  # hard pairs
        losses.soft_targets.pair = losses.other.pair = 1.0
    if variant in ("regions", "teacher"):
        data.regions.update(places=4, concepts="phantom")
        model.heads.regions = dict(stages=("stage3", "stage5"), pool="max", hidden=256, dim=128)
        losses.region_concept = dict(weight=0.5, temperature=0.1)
        config.evaluate.evaluators.region_classification.representations = ("stages", "head")
    if variant == "regions":
        data.regions.update(sources=("boxes", "sliding"), background=True)
        data.regions.make.sliding = dict(method="sliding")
    if variant == "teacher":
        data.regions.sources = ("pseudo",)
        losses.distillation = dict(weight=0.5, temperature=0.1)
    return config
