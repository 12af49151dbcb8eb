"""What `python -m mammoclip_jax.benchmark` measures, and how.

MODES compare functions on image files, one file a mode with `run(sample, **options) -> rows`. WORKS are what
`programs.py` does for a config, by mode (`training.py`); `against.py` compares them with the settings PEERS of PyTorch.
The mode DEVICE needs neither: `device.py` measures encoders on one device; GROWTH (`growth.py`) work on synthetic tables of
several sizes; SERVICE (`service.py`) what the service takes in and gives back.
"""

MODES = {"codecs": "codecs", "input": "input", "prepare": "prepare", "probe": "probe"}
WORKS = {
    "step": ("pretrain", "image_tower", "text_tower", "attributes"),
    "inference": ("inference",),
    "input": ("input",),
    "end_to_end": ("end_to_end",),
}
PEERS = ("reference", "tuned", "folded", "bf16", "compiled")
DEVICE = "device"
GROWTH = "growth"
SERVICE = "service"
