"""The whole pretraining job of a config: data, model, training, evaluation, report.

Of several processes all train; process 0 alone prepares data, writes and evaluates, on its own devices, while the
others wait. Evaluation on the way should therefore be cheap; the `evaluate` command does the rest.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import time
from pathlib import Path

import jax
from clu import parameter_overview

from mammoclip_jax import command, provenance, tasks
from mammoclip_jax.check import check
from mammoclip_jax.data import leave_out
from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.regions import job
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.summary import prepared
from mammoclip_jax.errors import UserError, together
from mammoclip_jax.evaluation import console, options
from mammoclip_jax.evaluation.page import report
from mammoclip_jax.evaluation.result import scalars, to_json
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.files import write_text
from mammoclip_jax.inference import attributes, loading, region_methods, text_classifier
from mammoclip_jax.inference.exam import predict
from mammoclip_jax.names import lookup
from mammoclip_jax.progress import Bar, working
from mammoclip_jax.training import checkpoint, continuation, distributed, goodput, logs, loop
from mammoclip_jax.training.mesh import describe, make_mesh, replicated
from mammoclip_jax.training.processes import barrier
from mammoclip_jax.training.writer import read_metrics
from mammoclip_jax.weights import licences, region_terms, warm_start
from mammoclip_jax.weights.opening import located, open_weights


def pretrain(config, workdir, *, before: float = 0.0) -> dict:
    """Runs the job to its end, going on from what `workdir` holds.

    Args:
        before: seconds that this process has spent before, on imports; they count as startup in the goodput ledger.

    Returns:
        step, loss, images_per_second, data_wait_share, seconds, and in process 0 metrics {name: {value, low, high,
        n}}, protocol, report (a path), goodput (productive share of the time of all attempts), ledger (that time by
        kind).

    Raises:
        UserError: the config or the data are wrong, or another process trains in `workdir`.
        loop.Stopped: the run was asked to stop, and has saved.
    """
    started = time.monotonic()
    check(config)
    distributed.configure(config)
    workdir = Path(workdir)
    changed = continuation.check(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with distributed.alone_in(workdir), logs.kept(workdir):
        distributed.share_workdir(workdir)
        before += time.monotonic() - started
        with contextlib.closing(goodput.Ledger(workdir, active=distributed.is_main(), before=before)) as ledger:
            figures = train_and_evaluate(config, workdir, ledger, changed)
            summary = ledger.summary()
    if summary:
        logging.info("%s", goodput.sentence(summary))
        figures |= {"goodput": summary.pop("goodput"), "ledger": summary}
    return figures | {"seconds": time.monotonic() - started}


def train_and_evaluate(config, workdir, ledger, changed) -> dict:
    """The figures of `pretrain` but the seconds and the goodput.

    `ledger` is told what the time goes into; `changed` is what the config changes of the run (`continuation.check`).
    """
    task, mesh = tasks.task_of(config), make_mesh(config.mesh)
    logging.info("%s", describe(mesh))
    distributed.meet(mesh)
    with distributed.main_first("data"):
        check_weights(config, workdir)
        datasets = open_datasets(config, workdir)
        datasets = task.split(config, datasets)
        tokenize = task.load_tokenizer(config, workdir, datasets)
    check_evaluation(datasets, config.evaluate)
    meta = {
        "kind": task.MODEL,
        "config": continuation.plain(config),
        "tokenizer": tokenize.to_json() if tokenize else None,
        "preprocessing": common_preprocessing(datasets),
        "provenance": provenance.collect(datasets),
        "trained_on": provenance.trained_on(datasets.values()),
    }
    region_terms.note(meta, config, datasets)
    continuation.check_content(meta, workdir)
    trainer, iterator = task.prepare(config, datasets, meta["preprocessing"], mesh, tokenize=tokenize, workdir=workdir)
    state = trainer.init(lambda fresh: start_variables(fresh, config, workdir, meta))
    task.start(config, trainer, state, datasets, tokenize=tokenize, workdir=workdir)
    if distributed.is_main():
        continuation.note(config, workdir, changed)
    logs.note(parameter_overview.get_parameter_overview(state.params, include_stats=False, max_lines=None))
    logging.info("%s", counted(state.params, workdir))
    evaluation = Evaluation(config, datasets, meta, mesh)
    outcome = loop.fit(
        trainer,
        state,
        iterator,
        config=config,
        workdir=workdir,
        meta=meta,
        evaluate=evaluation.on_the_way if config.evaluate.validation_evaluators else None,
        ledger=ledger,
    )
    figures = {"step": int(outcome.state.step)} | outcome.metrics
    ledger.turn_to("evaluation")
    return figures | evaluation.at_the_end(outcome.state, workdir)


def counted(params, workdir) -> str:
    """A line on how many parameters there are, and in which parts; where all are listed."""
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    parts = ", ".join(f"{name} {size:,}" for name, size in sorted(sizes.items(), key=lambda one: -one[1]))
    return f"{sum(sizes.values()):,} parameters ({parts}); all of them: {Path(workdir, logs.NAME)}"


def open_datasets(config, workdir) -> dict[str, Dataset]:
    """The dataset folders of `config.data.folders`, made first where the config says how (phantom, prepare), with the
    tables of `config.data.regions.make`.

    Only process 0 makes them, and has to come first (`distributed.main_first`). `{workdir}` in a path stands for the run's
    folder.
    """

    def placed(options):
        return {
            key: value.format(workdir=workdir) if isinstance(value, str) else value for key, value in options.items()
        }

    datasets, folders = {}, placed(config.data.folders)
    for name in folders.keys() - config.data.prepare.keys():
        Dataset.open(folders[name])  # a wrong folder is said before others are made for hours
    for name, folder in folders.items():
        if name in config.data.phantom and distributed.is_main():
            make_phantom(**placed(config.data.phantom[name]))
        if name in config.data.prepare and distributed.is_main():
            options = placed(config.data.prepare[name])
            started = time.monotonic()
            source, root = options.pop("source"), options.pop("root")
            counts = prepare(source, root, folder, **options)
            logging.info("%s", prepared(folder, counts, time.monotonic() - started))
        dataset = Dataset.open(folder)
        if distributed.is_main():
            for table, options in config.data.regions.make.items():
                make_regions(dataset, table, placed(options))
        datasets[name] = leave_out.unused(dataset, config.data.leave_out)
    return datasets


def make_regions(dataset: Dataset, name: str, options: dict) -> None:
    """The table of regions of that name, by `method` and its options; one that is there already is kept."""
    method = options.pop("method", name)
    counts = job.find(dataset, name, functools.partial(region_methods.opened, dataset, method, options))["counts"]
    logging.info("%s: %d regions %r of %d images", dataset.path, counts["regions"], name, counts["images"])


def make_phantom(out: str, exams: int, workers: int | None = None, **parameters) -> None:
    """The phantom set in `out`, by so many processes, or one a core; exams that are there already are kept."""
    workers = workers or len(os.sched_getaffinity(0))
    with Bar(exams, "exam", "making phantoms") as bar:
        made = phantom.generate(
            out, exams, phantom.Parameters(**parameters), workers, lambda done, _: bar.update(done - bar.done)
        )
    logging.info("%s: %d phantom exams, %d of them made now", out, exams, made)


def common_preprocessing(datasets) -> dict:
    """The preprocessing that all folders share.

    Raises:
        UserError: two folders were prepared differently.
    """
    (first_name, first), *others = datasets.items()
    shared = Preprocessing.from_dict(first.info["preprocessing"])
    wanted = dataclasses.asdict(shared)
    for name, dataset in others:
        settings = dataclasses.asdict(Preprocessing.from_dict(dataset.info["preprocessing"]))
        different = [key for key in wanted if wanted[key] != settings[key]]
        if different:
            key = different[0]
            raise UserError(
                f"{first_name} ({first.path}) and {name} ({dataset.path}) were prepared differently: "
                f"{key} is {wanted[key]!r} and {settings[key]!r}. Prepare one of them again."
            )
    return shared.as_dict()


def check_weights(config, workdir) -> None:
    """Raises UserError where a new run names weights that are not there: before data are made, which may take hours."""
    if checkpoint.steps(Path(workdir, "checkpoints")):
        return
    names = [entry.get("weights", "") for entry in config.warm_start.values()]
    together(*(functools.partial(located, name) for name in names if name))


def start_variables(fresh, config, workdir, meta, open_weights=open_weights) -> dict:
    """`fresh` with the weights that `config.warm_start` names; where they come from goes into meta["provenance"], and
    the patients that they were trained on into meta["trained_on"].

    A run that has a checkpoint goes on from that: nothing is read but what `workdir/warm_start.json` noted.

    Raises:
        UserError: weights cannot be read, do not fit, or may not be used so by their licence.
    """
    options = json.loads(json.dumps(config.warm_start.to_dict()))
    note = Path(workdir, "warm_start.json")
    if checkpoint.steps(Path(workdir, "checkpoints")):
        if not note.exists() and any(entry.get("weights") for entry in options.values()):
            raise UserError(
                f"{note} is missing: it says what this run began with and which terms bind it. Put it back, "
                "take config.warm_start out if the run began without, or name another --workdir."
            )
        noted = json.loads(note.read_text()) if note.exists() else {"config": options, "provenance": {}}
        if noted["config"] != options:
            logging.warning("config.warm_start is not what this run began with; it goes on from its checkpoint")
        meta["provenance"] = licences.joined(meta["provenance"], noted["provenance"])
        _, newest = checkpoint.newest_meta(workdir)
        newest = newest or {}
        meta["trained_on"] = provenance.trained_on((), meta.get("trained_on"), newest.get("trained_on"))
        meta |= {attributes.KIND: newest[attributes.KIND]} if attributes.KIND in newest else {}
        return fresh
    if not options:
        return fresh
    if config.model.text_classifier.dim:
        labels, concepts = config.model.labels, config.model.text_classifier.concepts
        open_weights = text_classifier.with_vectors(open_weights, labels, concepts)
    if config.task.kind == attributes.KIND:
        open_weights = attributes.with_dictionary(open_weights, config)
    with distributed.main_first("warm start"):  # what comes from the hub is fetched once
        variables, started = warm_start.start(fresh, options, open_weights)
    for line in started.differences(meta):
        logging.warning("%s", line)
    meta["provenance"] = licences.joined(meta["provenance"], started.provenance)
    meta["trained_on"] = provenance.trained_on(
        (), *(one.get("trained_on") for one in (meta, *started.sources.values()))
    )
    if config.task.kind == attributes.KIND:
        meta[attributes.KIND] = attributes.about(config, meta["preprocessing"], variables)
        attributes.check_adapters(meta[attributes.KIND], started)
    if distributed.is_main():
        write_text(note, json.dumps({"config": options} | started.to_json(), indent=2) + "\n")
    return variables


class Evaluation:
    """What a state is worth, found out by process 0 on its own devices; every process has to call."""

    def __init__(self, config, datasets, meta, mesh):
        self.config, self.datasets, self.meta = config, datasets, meta
        self.gather = jax.jit(lambda variables: variables, out_shardings=replicated(mesh))
        self.mesh = make_mesh({"data": -1}, jax.local_devices())
        self.model = None

    def on_the_way(self, state) -> dict[str, float]:
        """The cheap evaluators on the split for curves, as {name: value}; {} in other processes."""
        settings = self.config.evaluate

        def curve(model):
            results = evaluate(
                model,
                chosen(self.datasets, settings),
                settings.validation_evaluators,
                split=settings.validation_split,
                allow_training_patients=True,
                announce=False,
            )
            logging.info("step %d: %s", model.step, console.line(results))
            return scalars(results)

        return self._in_main(curve, state)

    def at_the_end(self, state, workdir) -> dict:
        """All evaluators and the report: metrics, protocol and report (its path); {} in other processes."""

        def whole(model):
            results, page = final_evaluation(model, self.datasets, self.config, workdir)
            console.show(results, Path(workdir, report.TABLES))
            print(f"report: {page}")
            return {"report": str(page)} | to_json(results)

        return self._in_main(whole, state)

    def _in_main(self, function, state) -> dict:
        variables, step = state.variables(), int(state.step)
        if jax.process_count() > 1:
            variables = jax.device_get(self.gather(variables))  # whole, and of no other process's devices
        figures = {}
        if distributed.is_main():
            with jax.set_mesh(self.mesh):
                if self.model is None:
                    self.model = loading.KINDS[self.meta["kind"]](
                        variables, self.meta, step, mesh=self.mesh, batch_size=self.config.evaluate.batch_size
                    )
                self.model.set_variables(variables, step)
                figures = function(self.model)
        barrier("evaluation")
        return figures


def final_evaluation(model, datasets, config, workdir):
    """All evaluators on the final split, the exam of `config.predict` scored, and the report: (results, its path)."""
    evaluation = config.evaluate
    results = evaluate(
        model, chosen(datasets, evaluation), evaluation.evaluators, split=evaluation.split, allow_training_patients=True
    )
    predictions = []
    if config.predict.exam:
        folder = workdir / "predictions"
        settings = config.predict
        path = settings.exam.format(workdir=workdir)
        with working(f"scoring the exam {path}"):
            exam = predict(
                model,
                path,
                folder,
                prompts=settings.prompts,
                stage=settings.stage,
                method=settings.method,
                mirror=settings.mirror,
                windows=settings.windows,
                pool=settings.pool,
            )
        predictions.append((exam, folder))
    page = report.write(
        workdir,
        results,
        model=model,
        datasets=datasets,
        predictions=predictions,
        history=read_metrics(workdir / "metrics.jsonl"),
        command=command.line(),
    )
    return results, page


def chosen(datasets, evaluation) -> dict[str, Dataset]:
    """The data sets that the config evaluates on: those it names, else all.

    Raises:
        UserError: it names one that is not there.
    """
    return {name: lookup(datasets, name, "config.evaluate.folders") for name in evaluation.folders or datasets}


def check_evaluation(datasets, evaluation) -> None:
    """Raises UserError where an evaluation on the way, or at the end, would find nothing, or not what it is asked for: before
    training, not after."""
    for kind, split in (("validation_evaluators", "validation_split"), ("evaluators", "split")):
        wanted = {options.get("split", evaluation[split]) for options in evaluation[kind].values()}
        there = {part for dataset in chosen(datasets, evaluation).values() for part in dataset.index["split"]}
        if wanted and not wanted & (there | {"all"}):
            raise UserError(
                f"config.evaluate.{kind} has nothing to evaluate: no data set has images in split "
                f"{', '.join(sorted(wanted))}; there are {', '.join(sorted(there))}. Set "
                f"config.evaluate.{split}."
            )
        options.check_data(evaluation[kind], chosen(datasets, evaluation))
