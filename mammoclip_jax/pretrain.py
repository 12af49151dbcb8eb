"""Pretrain an image-text model, evaluate it on the way and at the end, and write the report.

    python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir=runs/demo
    python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir=runs/short --config.train.steps=50

The same command with the same --workdir goes on where it stopped.
"""

import logging

from absl import flags
from ml_collections import config_flags

from mammoclip_jax import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, report.")
JSON = flags.DEFINE_string("json", "", "File for the figures of the run.")


def main(argv):
    del argv
    from mammoclip_jax import run
    from mammoclip_jax.training.loop import Stopped

    try:
        figures = run.pretrain(CONFIG.value, WORKDIR.value)
    except Stopped as stopped:
        logging.warning("%s", stopped)
        return command.INTERRUPTED
    command.write_json(JSON.value, figures)
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
