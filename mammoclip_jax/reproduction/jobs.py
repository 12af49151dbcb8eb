"""From published rows to runs: which config a row has, whether what it needs is at hand, the run, and its result file.

Rows that need the same computation, such as several columns with one set of weights, are one job. A job's folder is
named by a hash of its config and of the fingerprints of data and weights: a result is never taken for another one's,
and what is whole is not run again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mammoclip_jax import provenance, run, tasks
from mammoclip_jax.command import load_config
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import result
from mammoclip_jax.evaluation.features import label_texts
from mammoclip_jax.evaluation.page import report
from mammoclip_jax.evaluation.suite import check_preprocessing, evaluate
from mammoclip_jax.inference import loading
from mammoclip_jax.reproduction import published, recipes
from mammoclip_jax.reproduction.published import Row
from mammoclip_jax.weights import licences

CONFIGS = Path(__file__).parents[2] / "configs" / "reproduce"
EVERY = ""  # key of the weights that stand for the columns which have none of their own
IOU = {"iou25": "0.25", "iou50": "0.5"}  # end of a table's name -> of a figure's
_SHOWN = 16  # hex digits of a hash in a folder's name


class Weights(NamedTuple):
    """A model, and what its results have to say about it."""

    name: str
    model: Any
    fingerprint: str

    @property
    def licences(self) -> list[str]:
        """Titles of the terms of the weights, of those that they come from and of their data."""
        return [entry["title"] for entry in licences.terms(self.model.provenance)]


class Inputs(NamedTuple):
    """What is at hand: {column or EVERY: Weights}, {source: Dataset}."""

    weights: Mapping[str, Weights]
    data: Mapping[str, Dataset]

    def of(self, row: Row) -> Weights | None:
        return self.weights.get(row.model) or self.weights.get(EVERY)


class Recipe(NamedTuple):
    """How a row is measured here."""

    file: str  # of configs/reproduce, without .py
    argument: str
    metric: str  # name in the run's figures
    splits: tuple[str, ...]
    beside: tuple[str, ...] = ()  # figures that are shown with it


class Job(NamedTuple):
    """A computation and the rows that it is for."""

    rows: tuple[Row, ...]
    config: ConfigDict
    recipe: Recipe  # of the first of them
    metrics: tuple[str, ...]  # of all published rows that it can be for
    weights: Weights
    dataset: Dataset
    stamp: dict[str, Any]  # what a result has to agree in to stand for this job
    folder: Path


def open_inputs(weights: Mapping[str, str], folders: Mapping[str, str]) -> Inputs:
    """Loads the models and opens the data sets that the user named; each file once.

    Raises:
        UserError: one of them cannot be read.
    """
    models = {name: loading.load(name) for name in dict.fromkeys(weights.values())}
    known = {name: Weights(name, model, model.fingerprint()) for name, model in models.items()}
    return Inputs(
        {column: known[name] for column, name in weights.items()},
        {source: Dataset.open(folder) for source, folder in folders.items()},
    )


def recipe(row: Row, protocol: str) -> Recipe:
    """The config of a row. The published unit is kept: images of VinDr, breasts of RSNA."""
    kind, label = row.step.rpartition("_")[0], row.label
    as_published = protocol == "published"
    splits = ("train", "test") if as_published or row.task == "linear_probe" else ("train", "val", "test")
    tail = f"fraction={row.fraction},protocol={protocol}"
    name = ("accuracy" if label == "density" else "auroc") + "_image" * (row.dataset == "vindr")
    if row.task == "zero_shot":
        name = "accuracy_image" if label == "density" else "auroc_image"
        return Recipe(
            "zero_shot", f"label={label},protocol={protocol}", f"{row.dataset}/zero_shot/{label}/{name}", ("test",)
        )
    if row.task == "detection":
        return Recipe(
            "vindr_detector",
            f"label={label},frozen={int(kind == 'frozen')},{tail}",
            f"{row.dataset}/detection/{label}/ap@0.5",
            splits,
        )
    if row.task == "localisation":
        place, least = f"{row.dataset}/localisation/{label}/factor/published", IOU[row.table.rpartition("_")[2]]
        beside = (f"{place}/recall@{least}", f"{place}/regions")
        return Recipe("vindr_factor", f"protocol={protocol}", f"{place}/ap@{least}", splits, beside)
    argument = f"task={kind},{tail}" if row.dataset == "rsna" else f"label={label},task={kind},{tail}"
    part = label if row.fraction == 100 else f"{label} at {row.fraction} %"
    probe = kind == "linear_probe" and not as_published
    evaluator, of = ("linear_probe", part) if probe else ("classification", label)
    return Recipe(f"{row.dataset}_classifier", argument, f"{row.dataset}/{evaluator}/{of}/{name}", splits)


def metrics_of(setup: Recipe, protocol: str) -> tuple[str, ...]:
    """Names of the figures that one run gives for published rows: those of all rows with its config, and beside them."""
    same = [other for row in published.rows() if (other := recipe(row, protocol))[:2] == setup[:2]]
    return tuple(dict.fromkeys(name for other in same for name in (other.metric, *other.beside)))


def lacking(row: Row, inputs: Inputs, protocol: str) -> str:
    """Why a row cannot be run, for people; "" where everything is at hand."""
    setup, missing = recipe(row, protocol), []
    if row.dataset not in inputs.data:
        missing.append(f"data: --data={row.dataset}=DIR, a folder that prepare --source={row.dataset} made")
    else:
        missing += _lacking_labels(inputs.data[row.dataset], row, setup.splits)
    weights = inputs.of(row)
    if weights is None:
        missing.append(f"weights: --weights={row.model}=FILE ({row.weights}), or --weights=FILE of your own")
    elif row.task in ("zero_shot", "localisation") and weights.model.kind != "dual_encoder":
        missing.append(f"a text encoder: {weights.name} is a {weights.model.kind}")
    return "; ".join(missing)


def _lacking_labels(dataset: Dataset, row: Row, splits: Sequence[str]) -> list[str]:
    known = label_texts(dataset.index, row.label) != ""
    there = set(dataset.index["split"][known])
    absent = [split for split in splits if split not in there]
    return [f"{dataset.path} has no image of known {row.label} in split {', '.join(absent)}"] if absent else []


def plan(
    rows: Sequence[Row], inputs: Inputs, protocol: str, out: Path, overrides: Mapping[str, Any], configs: Path = CONFIGS
) -> list[Job]:
    """The jobs of rows that lack nothing.

    Raises:
        UserError: there is no folder of configs, an override fits no field, or an encoder fits no detector.
    """
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        setup = recipe(row, protocol)
        grouped.setdefault((setup.file, setup.argument, inputs.of(row).name), []).append(row)
    return [_job(tuple(group), inputs, protocol, out, overrides, configs) for group in grouped.values()]


def _job(rows, inputs: Inputs, protocol, out, overrides, configs) -> Job:
    row, weights = rows[0], inputs.of(rows[0])
    dataset, setup = inputs.data[row.dataset], recipe(row, protocol)
    config = read_config(configs, setup)
    apply_overrides(config, overrides, trained=_trains(config))
    if _trains(config):
        theirs = weights.model.config
        recipes.use_encoder(config, theirs.model, theirs.image.to_dict())
    stamp = {"config": config_hash(config), "data": dataset.info.get("fingerprint", ""), "weights": weights.fingerprint}
    digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
    # Paths come after the hash: the same run of another machine, or of moved files, is the same run.
    config.data.folders[row.dataset] = str(dataset.path)
    if _trains(config):
        recipes.use_weights(config, weights.name)
    metrics = metrics_of(setup, protocol)
    table = setup.file if row.task == "localisation" else row.table  # one run for four tables
    return Job(rows, config, setup, metrics, weights, dataset, stamp, out / table / f"{row.step}-{digest[:_SHOWN]}")


def _trains(config: ConfigDict) -> bool:
    """Whether a config trains a head on the weights; else they are evaluated as they are."""
    return tasks.task_of(config).COMMAND == "finetune"


def read_config(configs: Path, setup: Recipe) -> ConfigDict:
    """The config of a recipe.

    Raises:
        UserError: there is no such file.
    """
    path = Path(configs, f"{setup.file}.py")
    if not path.is_file():
        raise UserError(f"there is no {path}: run this in a checkout, or name configs/reproduce with --configs.")
    return load_config(f"{path}:{setup.argument}")


def config_hash(config: ConfigDict) -> str:
    """SHA-256 of the config as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(json.loads(config.to_json_best_effort()), sort_keys=True).encode()).hexdigest()


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any], trained: bool = True) -> None:
    """Sets fields such as "train.steps"; those of the section train are for configs that train.

    Raises:
        UserError: the config has no such field, or it holds another kind of value.
    """
    for name, value in overrides.items():
        if name.startswith("train.") and not trained:
            continue
        try:
            config.update_from_flattened_dict({name: value})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"--override={name}={value}: {error}") from None


def done(job: Job) -> dict | None:
    """The result of an earlier run of the same config, data and weights; None without."""
    path = job.folder / "result.json"
    record = json.loads(path.read_text()) if path.is_file() else None
    return record if record and record["stamp"] == job.stamp else None


def carry_out(job: Job, command: str = "") -> dict:
    """Evaluates, or trains and evaluates, and writes result.json: entry, protocol, stamp, code, weights, report.

    A training that was stopped goes on.

    Raises:
        UserError: data, weights and config do not go together.
        training.loop.Stopped: asked to stop, and saved.
    """
    started = time.monotonic()
    job.folder.mkdir(parents=True, exist_ok=True)
    figures = (_train if _trains(job.config) else _evaluate)(job, command)
    for name in job.metrics:
        if name not in figures["metrics"]:
            raise UserError(
                f"the run in {job.folder} has no metric {name}; it has {', '.join(sorted(figures['metrics']))[:300]}."
            )
    evaluator = job.recipe.metric.split("/")[1]
    record = {
        "rows": [row.name for row in job.rows],
        "entries": {name: figures["metrics"][name] for name in job.metrics},
        "config": f"{job.recipe.file}.py:{job.recipe.argument}",
        "protocol": figures["protocol"][f"{job.rows[0].dataset}/{evaluator}"],
        "stamp": job.stamp,
        "weights": {"name": job.weights.name, "licences": job.weights.licences},
        "licence_of_data": job.dataset.info.get("licence", ""),
        "real": bool(job.dataset.info.get("real", True)),
        "code": provenance.code(),
        "report": str(Path(figures["report"]).relative_to(job.folder)),
        "seconds": time.monotonic() - started,
    }
    result.write_json(job.folder / "result.json", record)
    return record


def _evaluate(job: Job, command: str) -> dict:
    datasets, model = {job.rows[0].dataset: job.dataset}, job.weights.model
    evaluators = {name: options.to_dict() for name, options in job.config.evaluate.evaluators.items()}
    results = evaluate(model, datasets, evaluators, split=job.config.evaluate.split)
    page = report.write(job.folder, results, model=model, datasets=datasets, title=job.config.name, command=command)
    return result.to_json(results) | {"report": str(page)}


def _train(job: Job, command: str) -> dict:
    del command
    if job.weights.model.kind != "image_encoder":
        check_preprocessing(job.weights.model, job.rows[0].dataset, job.dataset)
    tasks.check(job.config)
    logging.info("%s: training in %s", job.config.name, job.folder)
    return run.pretrain(job.config, job.folder)


def all_of(
    jobs: Sequence[Job], protocol: str, command: str = "", tell: Callable[[str], None] = print
) -> dict[str, dict]:
    """{row's name: its job's result with its own "entry" and {name: entry} "beside", or {"failed": reason}}.

    What is done already is read, not run.

    Raises:
        training.loop.Stopped: asked to stop; what was done so far is on disk.
    """
    outcomes = {}
    for number, job in enumerate(jobs, 1):
        where = f"{number}/{len(jobs)} {job.rows[0].table}/{job.rows[0].step}"
        outcome = done(job)
        if outcome:
            tell(f"{where}: done before, {job.folder}")
        else:
            tell(f"{where}: {job.config.name}")
            try:
                outcome = carry_out(job, command)
            except UserError as error:
                tell(f"{where}: failed: {error}")
                outcome = {"failed": str(error)}
        for row in job.rows:
            own = {} if "failed" in outcome else _of_row(recipe(row, protocol), outcome["entries"])
            outcomes[row.name] = outcome | own | {"folder": str(job.folder)}
    return outcomes


def _of_row(setup: Recipe, entries: Mapping[str, Any]) -> dict[str, Any]:
    beside = {name.rpartition("/")[2]: entries[name] for name in setup.beside}
    return {"metric": setup.metric, "entry": entries[setup.metric], "beside": beside}
