"""Evaluate a trained model: classification, detection, retrieval, saliency, each value with its interval.

    python -m mammoclip_jax.evaluate --workdir=runs/demo
    python -m mammoclip_jax.evaluate --workdir=runs/demo --dataset=data/mias --evaluators=zero_shot --json=scores.json
    python -m mammoclip_jax.evaluate --weights=models/b5 --dataset=data/vindr --evaluators=zero_shot --out=scores/b5

Without --dataset the folders of the run's config are used, without --evaluators those of config.evaluate. A data set
that the model was trained on, under whatever name, is split as it was then (config.task.folds); patients that the model
was trained on are refused. A
report.html and all tables go to --out, by default the folder `evaluation` of the workdir. --weights names a model
folder, a published file or a model on the hub instead of a run; it needs --dataset, --out, and --evaluators or --config.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError, together
from mammoclip_jax.evaluation import EVALUATORS
from mammoclip_jax.names import check_name


def define_flags() -> None:
    """The flags of the command; not at import, where they would meet those of another command."""
    flags.DEFINE_string("workdir", "", "Folder of the run, or one checkpoint of it.")
    flags.DEFINE_string("weights", "", "A model folder, a published file or a hub name, instead of a run.")
    config_flags.DEFINE_config_file("config", None, "Another config whose section `evaluate` is to be used.")
    flags.DEFINE_list("dataset", [], "Data set folders to evaluate on, instead of the config's.")
    flags.DEFINE_list("evaluators", [], f"Which of {', '.join(EVALUATORS)}, instead of the config's.")
    flags.DEFINE_string("split", "", "train, val, test or all, instead of the config's.")
    flags.DEFINE_integer("batch_size", 32, "Images at a time on the devices; no result depends on it.")
    flags.DEFINE_bool(
        "allow_training_patients", False, "Score patients that the model was trained on too; the results say how many."
    )
    flags.DEFINE_string("cache", "", "Folder that keeps image features for the next time.")
    flags.DEFINE_string("out", "", "Folder for results, tables and report.html.")
    flags.DEFINE_string("json", "", "File for the figures.")


def open_datasets(config, workdir: Path, folders: list[Any]) -> dict[str, Any]:
    """{name: Dataset} of the data sets `folders`, or of the config's, where `{workdir}` stands for the run's folder; without the
    images that `config.data.leave_out` names.

    The second of two folders with the same name gets a number behind it.
    """
    from mammoclip_jax.data import leave_out  # not for --help
    from mammoclip_jax.data.store.shards import Dataset

    def opened(folder: str) -> Dataset:
        return leave_out.unused(Dataset.open(folder), config.data.leave_out)

    if folders:
        named = {}
        for dataset in (leave_out.unused(dataset, config.data.leave_out) for dataset in folders):
            name = dataset.info["name"]
            names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
            named[next(free for free in names if free not in named)] = dataset
        return named
    wanted = config.evaluate.folders or tuple(config.data.folders)
    return {name: opened(config.data.folders[name].format(workdir=workdir)) for name in wanted}


def check_flags(values) -> None:
    """Raises UserError unless there is one model, and for one without a run also what its config would say."""
    if bool(values.workdir) == bool(values.weights):
        raise UserError("say which model: either --workdir=RUN or --weights=FOLDER, FILE or hub name.")
    lacking = [
        name
        for name in ("dataset", "evaluators", "out")
        if not getattr(values, name) and not (name == "evaluators" and values.config)
    ]
    if values.weights and lacking:
        raise UserError(f"--weights has no run whose config says the rest: give --{', --'.join(lacking)}.")


def check_names(values) -> None:
    """Raises UserError for a split that there is not, and for evaluators that neither the package nor, where the config is given,
    that has: before weights are read."""
    from mammoclip_jax.evaluation.options import check_split

    entries = values.config.evaluate.evaluators if values.config else {}
    names = [options.get("evaluator", name) for name, options in entries.items()]
    if values.evaluators and (values.config or values.weights):  # a run's config may have others
        names = [entries[name].get("evaluator", name) if name in entries else name for name in values.evaluators]
    together(
        lambda: values.split and check_split(values.split),
        *(functools.partial(check_name, name, EVALUATORS, "evaluator") for name in names),
    )


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    check_flags(values)
    from mammoclip_jax.data.store.shards import (
        Dataset,  # not for --help, nor a mistake in the command: others import jax
    )
    from mammoclip_jax.evaluation import console, options, result
    from mammoclip_jax.evaluation.page import report
    from mammoclip_jax.evaluation.suite import evaluate
    from mammoclip_jax.inference import loading
    from mammoclip_jax.tasks import split_as_trained
    from mammoclip_jax.training.writer import read_metrics

    check_names(values)
    given = [Dataset.open(folder) for folder in values.dataset]
    model = loading.load(values.workdir or values.weights, batch_size=values.batch_size)
    path = Path(values.workdir or values.out)
    workdir = path.parent.parent if path.parent.name == "checkpoints" else path
    config = values.config or model.config
    evaluators = {name: dict(own) for name, own in config.evaluate.evaluators.items()}
    if values.evaluators:
        evaluators = {name: evaluators.get(name, {}) for name in values.evaluators}
    if values.split:
        evaluators = {name: own | {"split": values.split} for name, own in evaluators.items()}
    options.check(model, evaluators, split=config.evaluate.split)
    datasets = split_as_trained(model, open_datasets(config, workdir, given))
    out = Path(values.out or workdir / "evaluation")
    results = evaluate(
        model,
        datasets,
        evaluators,
        split=config.evaluate.split,
        cache=values.cache,
        allow_training_patients=values.allow_training_patients,
    )
    page = report.write(
        out,
        results,
        model=model,
        datasets=datasets,
        history=read_metrics(workdir / "metrics.jsonl"),
        command=command.line(),
    )
    console.show(results, out / report.TABLES)
    print(f"report: {page}")
    command.write_json(
        values.json, result.to_json(results) | {"step": model.step, "provenance": model.provenance, "report": str(page)}
    )
    return 0


if __name__ == "__main__":
    define_flags()
    command.run(main)
