"""Evaluate a trained model: zero-shot, retrieval, saliency, each value with its interval.

    python -m mammoclip_jax.evaluate --workdir=runs/demo
    python -m mammoclip_jax.evaluate --workdir=runs/demo --dataset=data/mias --evaluators=zero_shot --json=scores.json

Without --dataset the folders of the run's config are used, without --evaluators those of config.evaluate. Results,
tables and a report.html go to --out, by default the folder `evaluation` of the workdir.
"""

import importlib
import sys
from pathlib import Path
from typing import Any, Mapping

from absl import flags
from ml_collections import config_flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import EVALUATORS, result
from mammoclip_jax.evaluation.features import Features
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.names import check_options, lookup

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, or one checkpoint of it.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Another config whose section `evaluate` is to be used.")
DATASET = flags.DEFINE_list("dataset", [], "Dataset folders to evaluate on, instead of the config's.")
NAMES = flags.DEFINE_list("evaluators", [], f"Which of {', '.join(EVALUATORS)}, instead of the config's.")
SPLIT = flags.DEFINE_string("split", "", "train, val, test or all, instead of the config's.")
OUT = flags.DEFINE_string("out", "", "Folder for results, tables and report.html.")
JSON = flags.DEFINE_string("json", "", "File for the figures.")


def evaluate(model, datasets: Mapping[str, Any], evaluators: Mapping[str, Mapping[str, Any]],
             out: Path | str | None = None) -> list[Result]:
    """Every evaluator on every data set; results are named "dataset/evaluator" and, with `out`, saved there.

    Args:
        model: an `inference.Model`.
        datasets: {name: data.shards.Dataset}, prepared as the model's training data were.
        evaluators: {name: options}. An option `evaluator` says which one it is when the name is another; an option
            `folders` names the only data sets that it is for.

    Raises:
        UserError: an unknown evaluator, option or split, or a data set that was prepared differently.
    """
    plans = {name: _plan(name, dict(options)) for name, options in evaluators.items()}
    results = []
    for folder, dataset in datasets.items():
        check_preprocessing(model, folder, dataset)
        features = Features(model, dataset)
        for name, (function, options, folders) in plans.items():
            if folders and folder not in folders:
                continue
            shared = {"features": features} if "features" in function.__annotations__ else {}
            results.append(function(model, dataset, **options, **shared)._replace(name=f"{folder}/{name}"))
    if out:
        result.save(results, Path(out))
    return results


def _plan(name: str, options: dict[str, Any]):
    """(function, its options, data sets it is for) of an entry of the config."""
    folders = tuple(options.pop("folders", ()))
    target = lookup(EVALUATORS, options.pop("evaluator", name), "evaluator")
    module, _, attribute = target.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    check_options(function, options, f"evaluator {name!r}")
    return function, options, folders


def check_preprocessing(model, name: str, dataset) -> None:
    """Raises UserError when a data set's images were prepared otherwise than those that the model has learnt from."""
    learnt, found = dict(model.preprocessing), dict(dataset.info["preprocessing"])
    for key in learnt | found:
        if learnt.get(key) != found.get(key):
            raise UserError(f"data set {name!r} was prepared with {key}={found.get(key)!r}, the model learnt from "
                            f"{key}={learnt.get(key)!r}. Prepare the data set again with the model's value.")


def open_datasets(config, workdir: Path, folders: list[str]) -> dict[str, Any]:
    """{name: Dataset} of `folders`, or of the config's, where `{workdir}` stands for the run's folder."""
    from mammoclip_jax.data.shards import Dataset

    if folders:
        opened = [Dataset.open(folder) for folder in folders]
        return {dataset.info["name"]: dataset for dataset in opened}
    wanted = config.evaluate.folders or tuple(config.data.folders)
    return {name: Dataset.open(config.data.folders[name].format(workdir=workdir)) for name in wanted}


def main(argv):
    del argv
    from mammoclip_jax import inference
    from mammoclip_jax.evaluation import report

    path = Path(WORKDIR.value)
    model = inference.load(path)
    workdir = path.parent.parent if path.parent.name == "checkpoints" else path
    config = CONFIG.value or model.config
    datasets = open_datasets(config, workdir, DATASET.value)
    evaluators = {name: dict(options) for name, options in config.evaluate.evaluators.items()}
    if NAMES.value:
        evaluators = {name: evaluators.get(name, {}) for name in NAMES.value}
    for options in evaluators.values():
        options["split"] = SPLIT.value or options.get("split", config.evaluate.split)
    out = Path(OUT.value or workdir / "evaluation")
    results = evaluate(model, datasets, evaluators, out)
    page = report.write(out, results, model=model, datasets=datasets, history=workdir / "metrics.jsonl",
                        command=" ".join(["python -m mammoclip_jax.evaluate", *sys.argv[1:]]))
    print(result.text_table(results))
    print(f"report: {page}")
    command.write_json(JSON.value, result.to_json(results) | {"step": model.step, "provenance": model.provenance,
                                                              "report": str(page)})
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    command.run(main)
