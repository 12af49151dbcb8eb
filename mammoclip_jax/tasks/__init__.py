"""What a config may train, by the name in `config.task.kind`. To add a task: a file here, and its line in `TASKS`.

A task is a module with

- `MODEL`, the kind of the model that it leaves, a key of `inference.loading.KINDS`, and `COMMAND`, which trains it;
- `READS`, the config's fields that it reads beside those that all tasks do (`config.READ_BY_ALL`); to set another is an error;
- `check(config)`, which raises UserError for a config that it cannot train, and `network(config)`, its model;
- `split(config, datasets)`, the data sets with the splits that the config asks for;
- `load_tokenizer(config, workdir, datasets)`, or None where no text is read;
- `prepare(config, datasets, preprocessing, mesh, *, tokenize, workdir)`, the Trainer and the iterator of its batches;
- `start(config, trainer, state, datasets, *, tokenize, workdir)`, what is left to do before the first step.
"""

from types import ModuleType
from typing import Any

from mammoclip_jax.config import check_common
from mammoclip_jax.errors import together
from mammoclip_jax.names import load
from mammoclip_jax.tasks import limits

TASKS = {
    "pretrain": "pretrain",
    "attributes": "attributes",
    "classifier": "classification",
    "detector": "detection",
    "segmentation": "segmentation",
}


def task_of(config) -> ModuleType:
    """The task of a config. Raises UserError for a kind that is not there."""
    return load(__name__, TASKS, config.task.kind, "kind of config.task.kind")


def check(config) -> None:
    """Raises UserError when the config cannot describe a run, or has options that its task does not use."""
    task = task_of(config)
    together(lambda: check_common(config, task.READS), lambda: limits.check(config), lambda: task.check(config))


def split_as_trained(model, datasets: dict[str, Any]) -> dict[str, Any]:
    """The data sets, with the folds of the model's training where it was trained on the same content."""
    known = {entry.get("fingerprint") for entry in model.provenance.get("data", {}).values()}
    own = {name: dataset for name, dataset in datasets.items() if dataset.info["fingerprint"] in known}
    return datasets | task_of(model.config).split(model.config, own)
