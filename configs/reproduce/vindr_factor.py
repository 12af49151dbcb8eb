"""VinDr-Mammo: Mammo-FActOR's localisation, rows of four tables (mass and calcification, IoU .25 and .5) in one training.

    python -m mammoclip_jax.finetune --config=configs/reproduce/vindr_factor.py:protocol=published \
        --workdir=runs/factor --config.warm_start.encoder.weights=b5-model-best-epoch-7.tar

configs/mammo_factor.py with the same argument, scored by the evaluator localisation. What the published tables count is
stated in no text that could be opened: average precision on images with a box stands beside them, and recall is given too.
"""

import runpy
from pathlib import Path


def get_config(argument=""):
    config = runpy.run_path(str(Path(__file__).parent.with_name("mammo_factor.py")))["get_config"](argument)
    protocol = "published" if "protocol=published" in argument else "default"
    config.name = f"VinDr boxes by Mammo-FActOR, {protocol} protocol"  # the encoder is that of the weights
    return config
