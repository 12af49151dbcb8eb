"""Mammo-CLIP with EfficientNet-B2 at 1520 x 912: row "Mammo-CLIP B2 (UPMC)". Everything else is as in mammoclip_b5.py.

python -m mammoclip_jax.pretrain --config=configs/mammoclip_b2.py --workdir=runs/mammoclip_b2
"""

import runpy
from pathlib import Path


def get_config(hardware=""):
    config = runpy.run_path(str(Path(__file__).with_name("mammoclip_b5.py")))["get_config"](hardware)
    config.name = "Mammo-CLIP B2"
    config.model.image.variant = "b2"
    return config
