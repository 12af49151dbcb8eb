r"""Train a classifier, detector or segmentation on labelled images, evaluate it on the way and at the end, write the report.

    python -m mammoclip_jax.finetune --config=configs/phantom_classifier.py --workdir=runs/classifier
    python -m mammoclip_jax.finetune --config=configs/phantom_detector.py --workdir=runs/detector \
        --config.warm_start.image.weights=runs/demo
    python -m mammoclip_jax.finetune --config=configs/mias_finetune.py --workdir=runs/mias --config.data.folders.mias=data/mias

config.task says what is learnt, config.warm_start what from. All else is as in `pretrain`: the same command goes on where
it stopped, on one process or many. With config.task.monitor the best state by that figure of the validation part is kept
in WORKDIR/best, evaluated at the end, and what is loaded of the run; the test part chooses nothing. With config.task.folds
and config.task.fold=-1 the folds are trained one after the other in WORKDIR/fold_0, ..., and scored together.
"""

import logging
import subprocess
import sys
from pathlib import Path

from absl import flags

from mammoclip_jax import command, pretrain
from mammoclip_jax.errors import UserError


def main(argv) -> int:
    """The command; see --help."""
    from mammoclip_jax.tasks import task_of

    task, wanted = pretrain.CONFIG.value.task, task_of(pretrain.CONFIG.value).COMMAND
    if wanted != "finetune":
        raise UserError(
            f"this config learns from texts (config.task.kind is {task.kind}): start it with "
            f"python -m mammoclip_jax.{wanted}."
        )
    if task.folds and task.fold < 0:
        from mammoclip_jax.check import check

        first = pretrain.CONFIG.value.copy_and_resolve_references()
        first.task.fold = 0
        check(first)
        return all_folds(task.folds, Path(pretrain.WORKDIR.value))
    return pretrain.main(argv)


def all_folds(count: int, workdir: Path) -> int:
    """Trains every fold in a process of its own, and writes what they show together."""
    from mammoclip_jax.evaluation import console, folds, result
    from mammoclip_jax.evaluation.page import report

    folders = [workdir / f"fold_{fold}" for fold in range(count)]
    for fold, folder in enumerate(folders):
        logging.info("fold %d of %d: %s", fold + 1, count, folder)
        own = (f"--workdir={folder}", "--json=", f"--config.task.fold={fold}")  # the last of a flag counts
        ended = subprocess.run([sys.executable, "-m", "mammoclip_jax.finetune", *sys.argv[1:], *own])
        if ended.returncode:
            return ended.returncode
    results = folds.pooled([folder / report.TABLES for folder in folders])
    result.save(results, workdir / report.TABLES)
    console.show(results, workdir / report.TABLES)
    command.write_json(pretrain.JSON.value, result.to_json(results))
    return 0


if __name__ == "__main__":
    flags.adopt_module_key_flags(pretrain)  # for --help
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
