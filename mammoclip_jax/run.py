"""The whole pretraining job of a config: data, model, training, evaluation, report.

Of several processes all train; process 0 alone prepares data, writes and evaluates, on its own devices, while the
others wait. Evaluation on the way should therefore be cheap; the `evaluate` command does the rest.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path

import jax
from clu import parameter_overview
from tqdm import tqdm

from mammoclip_jax import config as config_module
from mammoclip_jax import cached_text, continuation, host, inference, provenance, supervised
from mammoclip_jax.data import leave_out, pipeline
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.summary import prepared
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.data.text.features import TextFeatures
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import report
from mammoclip_jax.evaluation.display import text_table
from mammoclip_jax.evaluation.exam import predict
from mammoclip_jax.evaluation.result import scalars, to_json
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.files import write_text
from mammoclip_jax.names import lookup
from mammoclip_jax.prepare import prepare
from mammoclip_jax.source import open_weights
from mammoclip_jax.training import checkpoint, goodput, loop
from mammoclip_jax.trainer import make_trainer
from mammoclip_jax.training.mesh import make_mesh, process_rows, replicated
from mammoclip_jax.training.processes import barrier
from mammoclip_jax.training.writer import read_metrics
from mammoclip_jax.weights import warm_start


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
    config_module.check(config)
    if config.model.cached_text:
        cached_text.check(config)
    host.configure(config)
    workdir = Path(workdir)
    changed = continuation.check(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with host.alone_in(workdir):
        host.share_workdir(workdir)
        before += time.monotonic() - started
        with contextlib.closing(goodput.Ledger(workdir, active=host.is_main(), before=before)) as ledger:
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
    mesh = make_mesh(config.mesh)
    host.meet(mesh)
    with host.main_first("data"):
        datasets = open_datasets(config, workdir)
        labelled = config.task.kind != "pretrain"
        datasets = supervised.split(config, datasets) if labelled else datasets
        tokenize = None if labelled else load_tokenizer(config, workdir, datasets)
    check_evaluation(datasets, config.evaluate)
    meta = {
        "kind": config.task.kind if labelled else "dual_encoder",
        "config": continuation.plain(config),
        "tokenizer": tokenize.to_json() if tokenize else None,
        "preprocessing": common_preprocessing(datasets),
        "provenance": provenance.collect(datasets),
        "trained_on": provenance.trained_on(datasets.values()),
    }
    continuation.check_content(meta, workdir)
    if labelled:
        trainer, iterator = supervised.prepare(config, datasets, meta["preprocessing"], mesh)
    else:
        trainer = make_trainer(config, tokenize.vocab_size, meta["preprocessing"], mesh)
        iterator = train_iterator(config, datasets, tokenize, mesh, workdir)
    state = trainer.init(lambda fresh: start_variables(fresh, config, workdir, meta))
    if config.model.cached_text:
        cached_text.prepare(config, trainer, state, datasets, tokenize, workdir)
    if host.is_main():
        continuation.note(config, workdir, changed)
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False, max_lines=40))
    evaluation = Evaluation(config, datasets, meta, mesh)
    outcome = loop.fit(trainer, state, iterator, config=config, workdir=workdir, meta=meta,
                       evaluate=evaluation.on_the_way if config.evaluate.curve_evaluators else None,
                       ledger=ledger)
    figures = {"step": int(outcome.state.step)} | outcome.metrics
    ledger.turn_to("evaluation")
    return figures | evaluation.at_the_end(outcome.state, workdir)


def open_datasets(config, workdir) -> dict[str, Dataset]:
    """The dataset folders of `config.data.folders`, made first where the config says how (phantom, prepare).

    Only process 0 makes them, and has to come first (`host.main_first`). `{workdir}` in a path stands for the run's
    folder.
    """
    def placed(options):
        return {key: value.format(workdir=workdir) if isinstance(value, str) else value
                for key, value in options.items()}

    datasets = {}
    for name, folder in placed(config.data.folders).items():
        if name in config.data.phantom and host.is_main():
            make_phantom(**placed(config.data.phantom[name]))
        if name in config.data.prepare and host.is_main():
            options = placed(config.data.prepare[name])
            started = time.monotonic()
            source, root = options.pop("source"), options.pop("root")
            counts = prepare(source, root, folder, **options)
            logging.info("%s", prepared(folder, counts, time.monotonic() - started))
        datasets[name] = leave_out.unused(Dataset.open(folder), config.data.leave_out)
    return datasets


def make_phantom(out: str, exams: int, **parameters) -> None:
    """The phantom set in `out`; exams that are there already are kept."""
    workers = len(os.sched_getaffinity(0))
    with tqdm(total=exams, desc="phantom exams", unit="exam", disable=None) as bar:
        made = phantom.generate(out, exams, phantom.Parameters(**parameters), workers,
                                lambda done, _: bar.update(done - bar.n))
    logging.info("%s: %d phantom exams, %d of them made now", out, exams, made)


def load_tokenizer(config, workdir, datasets) -> tokenizer.Tokenize:
    """The tokenizer the config names; by default a WordPiece trained on the training texts and kept in `workdir`."""
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer)
    path = Path(workdir, "tokenizer.json")
    if not path.exists():
        texts = [text for dataset in datasets.values()
                 for texts in dataset.index["texts"][dataset.index["split"] == "train"] for text in texts]
        tokenizer.Tokenize(tokenizer.train_wordpiece(texts, config.data.vocab_size)).save(path)
    return tokenizer.load(path)


def common_preprocessing(datasets) -> dict:
    """The preprocessing that all folders share.

    Raises:
        UserError: two folders were prepared differently.
    """
    (first_name, first), *others = datasets.items()
    wanted = dataclasses.asdict(Preprocessing.from_dict(first.info["preprocessing"]))
    for name, dataset in others:
        found = dataclasses.asdict(Preprocessing.from_dict(dataset.info["preprocessing"]))
        different = [key for key in wanted if wanted[key] != found[key]]
        if different:
            key = different[0]
            raise UserError(f"{first_name} ({first.path}) and {name} ({dataset.path}) were prepared differently: "
                            f"{key} is {wanted[key]!r} and {found[key]!r}. Prepare one of them again.")
    return wanted


def train_iterator(config, datasets, tokenize, mesh, workdir):
    """This process's checkpointable iterator of its devices' parts of the training batches."""
    data = config.data
    rows = process_rows(config.train.batch_size, mesh, config.model.image.get("rows"))
    return pipeline.train_iterator(
        list(datasets.values()), tokenize, split="train", batch_size=config.train.batch_size, rows=rows,
        views=data.views, texts=data.texts, text_length=data.text_length, seed=config.seed,
        flip_horizontal=data.flip_horizontal, flip_vertical=data.flip_vertical,
        shuffle_sentences=data.shuffle_sentences, read_threads=data.read_threads,
        text=pipeline.text_options(data), features=TextFeatures(workdir) if config.model.cached_text else None)


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
            raise UserError(f"{note} is missing: it says what this run began with and which terms bind it. Put it back, "
                            "take config.warm_start out if the run began without, or name another --workdir.")
        noted = json.loads(note.read_text()) if note.exists() else {"config": options, "provenance": {}}
        if noted["config"] != options:
            logging.warning("config.warm_start is not what this run began with; it goes on from its checkpoint")
        meta["provenance"] |= noted["provenance"]
        _, newest = checkpoint.newest_meta(workdir)
        meta["trained_on"] = provenance.trained_on((), meta.get("trained_on"), (newest or {}).get("trained_on"))
        return fresh
    if not options:
        return fresh
    with host.main_first("warm start"):     # what comes from the hub is fetched once
        variables, started = warm_start.start(fresh, options, open_weights)
    for line in started.differences(meta):
        logging.warning("%s", line)
    meta["provenance"] |= started.provenance
    meta["trained_on"] = provenance.trained_on((), *(one.get("trained_on") for one in (meta, *started.sources.values())))
    if host.is_main():
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
            return scalars(evaluate(model, chosen(self.datasets, settings), settings.curve_evaluators,
                                    split=settings.curve_split, allow_training_patients=True))

        return self._in_main(curve, state)

    def at_the_end(self, state, workdir) -> dict:
        """All evaluators and the report: metrics, protocol and report (its path); {} in other processes."""
        def whole(model):
            results, page = final_evaluation(model, self.datasets, self.config, workdir)
            print(text_table(results))
            print(f"report: {page}")
            return {"report": str(page)} | to_json(results)

        return self._in_main(whole, state)

    def _in_main(self, function, state) -> dict:
        variables, step = state.variables(), int(state.step)
        if jax.process_count() > 1:
            variables = jax.device_get(self.gather(variables))      # whole, and of no other process's devices
        found = {}
        if host.is_main():
            with jax.set_mesh(self.mesh):
                if self.model is None:
                    self.model = inference.KINDS[self.meta["kind"]](variables, self.meta, step, mesh=self.mesh,
                                                                    batch_size=self.config.evaluate.batch_size)
                self.model.set_variables(variables, step)
                found = function(self.model)
        barrier("evaluation")
        return found


def final_evaluation(model, datasets, config, workdir):
    """All evaluators on the final split, the exam of `config.predict` scored, and the report: (results, its path)."""
    evaluation = config.evaluate
    results = evaluate(model, chosen(datasets, evaluation), evaluation.evaluators, split=evaluation.split,
                       allow_training_patients=True)
    predictions = []
    if config.predict.exam:
        folder = workdir / "predictions"
        settings = config.predict
        exam = predict(model, settings.exam.format(workdir=workdir), folder, prompts=settings.prompts,
                       stage=settings.stage, method=settings.method)
        predictions.append((exam, folder))
    page = report.write(workdir, results, model=model, datasets=datasets, predictions=predictions,
                        history=read_metrics(workdir / "metrics.jsonl"), command=shlex.join(sys.argv))
    return results, page


def chosen(datasets, evaluation) -> dict[str, Dataset]:
    """The data sets that the config evaluates on: those it names, else all.

    Raises:
        UserError: it names one that is not there.
    """
    return {name: lookup(datasets, name, "config.evaluate.folders") for name in evaluation.folders or datasets}


def check_evaluation(datasets, evaluation) -> None:
    """Raises UserError where an evaluation on the way, or at the end, would find nothing: before training, not after."""
    for kind, split in (("curve_evaluators", "curve_split"), ("evaluators", "split")):
        wanted = {options.get("split", evaluation[split]) for options in evaluation[kind].values()}
        there = {part for dataset in chosen(datasets, evaluation).values() for part in dataset.index["split"]}
        if wanted and not wanted & (there | {"all"}):
            raise UserError(f"config.evaluate.{kind} has nothing to evaluate: no data set has images in split "
                            f"{', '.join(sorted(wanted))}; there are {', '.join(sorted(there))}. Set "
                            f"config.evaluate.{split}.")
