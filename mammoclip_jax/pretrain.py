"""Pretrain an image-text model, evaluate it on the way and at the end, and write the report.

    python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir=runs/demo
    python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir=runs/short --config.train.steps=50

The same command with the same --workdir goes on where it stopped, on as many processes as it is then given.

Several hosts or GPUs: start it once a process. SLURM, Open MPI and TPU pods are recognised (launch/ has the scripts);
elsewhere each process is told its place, and all share --workdir:

    python -m mammoclip_jax.pretrain --config=... --workdir=... --coordinator=HOST:PORT --processes=2 --process=0
"""

import logging

from absl import flags
from ml_collections import config_flags

from mammoclip_jax import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, report.")
JSON = flags.DEFINE_string("json", "", "File for the figures of the run.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; or JAX_COORDINATOR_ADDRESS.")
PROCESSES = flags.DEFINE_string("processes", "", "How many, or auto: ask the cluster; or JAX_NUM_PROCESSES.")
PROCESS = flags.DEFINE_string("process", "", "Which one this is, from 0; or JAX_PROCESS_ID.")


def main(argv):
    del argv
    from mammoclip_jax import run
    from mammoclip_jax.training import distributed
    from mammoclip_jax.training.goodput import process_age
    from mammoclip_jax.training.loop import Stopped

    distributed.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    with distributed.failing_together():
        try:
            figures = run.pretrain(CONFIG.value, WORKDIR.value, before=process_age())
        except Stopped as stopped:
            logging.warning("%s", stopped)
            return command.INTERRUPTED
        if distributed.is_main():
            command.write_json(JSON.value, figures)
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
