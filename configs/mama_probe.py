"""MaMA's linear probe: as configs/mama_finetune.py, and the encoder stays as it is.

    python -m mammoclip_jax.finetune --config=configs/mama_probe.py:birads --workdir=runs/mama_birads_probe \
        --config.warm_start.image.weights=runs/mama

`:density` and `:cancer` as there (scripts/lp_pretrained.sh). A new linear layer on the mean of all tokens is trained by
steps of SGD on varied images. The evaluator `linear_probe` (docs/probe.md) is another: a logistic regression on the
features of the images as they are, brought to its optimum in minutes.
"""

import runpy
from pathlib import Path


def get_config(label="birads"):
    config = runpy.run_path(str(Path(__file__).with_name("mama_finetune.py")))["get_config"](label)
    config.name = f"MaMA: {label}, linear probe"
    config.model.frozen, config.task.encoder = ("image",), "eval"
    return config
