"""The whole pretraining job of a config: data, model, training, evaluation, report."""

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
from mammoclip_jax import host, inference, provenance
from mammoclip_jax.data import pipeline
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.summary import prepared
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import report
from mammoclip_jax.evaluation.display import text_table
from mammoclip_jax.evaluation.exam import predict
from mammoclip_jax.evaluation.result import scalars, to_json
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.prepare import prepare
from mammoclip_jax.source import open_weights
from mammoclip_jax.training import loop
from mammoclip_jax.trainer import make_trainer
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.training.writer import read_metrics
from mammoclip_jax.weights import warm_start


def pretrain(config, workdir) -> dict:
    """Runs the job to its end, going on from what `workdir` holds.

    Returns:
        step, loss, images_per_second, data_wait_share, seconds, metrics {name: {value, low, high, n}}, protocol,
        report (a path).

    Raises:
        UserError: the config or the data are wrong.
        loop.Stopped: the run was asked to stop, and has saved.
    """
    started = time.monotonic()
    config_module.check(config)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    host.configure(config)
    mesh = make_mesh(config.mesh)
    datasets = open_datasets(config, workdir)
    tokenize = load_tokenizer(config, workdir, datasets)
    meta = {
        "config": json.loads(config.to_json_best_effort()),
        "tokenizer": tokenize.to_json(),
        "preprocessing": common_preprocessing(datasets),
        "provenance": provenance.collect(datasets),
    }
    (workdir / "config.json").write_text(json.dumps(meta["config"], indent=2) + "\n")
    iterator = train_iterator(config, datasets, tokenize)
    trainer = make_trainer(config, tokenize.vocab_size, meta["preprocessing"], mesh)
    state = trainer.init(lambda fresh: start_variables(fresh, config, workdir, meta))
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False, max_lines=40))
    curve = Curve(config, datasets, meta, mesh)
    outcome = loop.fit(trainer, state, iterator, config=config, workdir=workdir, meta=meta,
                       evaluate=curve if config.evaluate.curve_evaluators else None)
    model = inference.load(workdir, batch_size=config.evaluate.batch_size)
    results, page = final_evaluation(model, datasets, config, workdir)
    print(text_table(results))
    print(f"report: {page}")
    figures = {"step": int(outcome.state.step), "seconds": time.monotonic() - started, "report": str(page)}
    return figures | outcome.metrics | to_json(results)


def open_datasets(config, workdir) -> dict[str, Dataset]:
    """The dataset folders of `config.data.folders`, made first where the config says how (phantom, prepare).

    `{workdir}` in a path stands for the run's folder.
    """
    def placed(options):
        return {key: value.format(workdir=workdir) if isinstance(value, str) else value
                for key, value in options.items()}

    datasets = {}
    for name, folder in placed(config.data.folders).items():
        if name in config.data.phantom:
            make_phantom(**placed(config.data.phantom[name]))
        if name in config.data.prepare:
            options = placed(config.data.prepare[name])
            started = time.monotonic()
            source, root = options.pop("source"), options.pop("root")
            counts = prepare(source, root, folder, **options)
            logging.info("%s", prepared(folder, counts, time.monotonic() - started))
        datasets[name] = Dataset.open(folder)
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


def train_iterator(config, datasets, tokenize):
    """This process's checkpointable Grain iterator of training batches."""
    data = config.data
    return pipeline.train_iterator(
        list(datasets.values()), tokenize, split="train", batch_size=config.train.batch_size // jax.process_count(),
        views=data.views, texts=data.texts, text_length=data.text_length, seed=config.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
        flip_horizontal=data.flip_horizontal, flip_vertical=data.flip_vertical,
        shuffle_sentences=data.shuffle_sentences, read_threads=data.read_threads,
        text=pipeline.TextOptions(**{name: data[name] for name in pipeline.TextOptions._fields}))


def start_variables(fresh, config, workdir, meta, open_weights=open_weights) -> dict:
    """`fresh` with the weights that `config.warm_start` names; where they come from goes into meta["provenance"].

    A run that has a checkpoint goes on from that: nothing is read but what `workdir/warm_start.json` noted.

    Raises:
        UserError: weights cannot be read, do not fit, or may not be used so by their licence.
    """
    options = json.loads(json.dumps(config.warm_start.to_dict()))
    note = Path(workdir, "warm_start.json")
    if any(path.name.isdigit() for path in Path(workdir, "checkpoints").glob("*")):
        if not note.exists() and any(entry.get("weights") for entry in options.values()):
            raise UserError(f"{note} is missing: it says what this run began with and which terms bind it. Put it back, "
                            "take config.warm_start out if the run began without, or name another --workdir.")
        noted = json.loads(note.read_text()) if note.exists() else {"config": options, "provenance": {}}
        if noted["config"] != options:
            logging.warning("config.warm_start is not what this run began with; it goes on from its checkpoint")
        meta["provenance"] |= noted["provenance"]
        return fresh
    if not options:
        return fresh
    variables, started = warm_start.start(fresh, options, open_weights)
    for line in started.differences(meta):
        logging.warning("%s", line)
    meta["provenance"] |= started.provenance
    if jax.process_index() == 0:
        note.write_text(json.dumps({"config": options} | started.to_json(), indent=2) + "\n")
    return variables


class Curve:
    """Called with a state on the way: the cheap evaluators on the split for curves, as {name: value}."""

    def __init__(self, config, datasets, meta, mesh):
        self.config, self.datasets, self.meta, self.mesh = config, datasets, meta, mesh
        self.model = None

    def __call__(self, state) -> dict[str, float]:
        variables = {"params": state.ema or state.params, "batch_stats": state.batch_stats}
        step = int(state.step)
        if self.model is None:
            self.model = inference.Model(variables, self.meta, step, mesh=self.mesh,
                                         batch_size=self.config.evaluate.batch_size)
        self.model.set_variables(variables, step)
        evaluation = self.config.evaluate
        return scalars(evaluate(self.model, chosen(self.datasets, evaluation), evaluation.curve_evaluators,
                                split=evaluation.curve_split))


def final_evaluation(model, datasets, config, workdir):
    """All evaluators on the final split, the exam of `config.predict` scored, and the report: (results, its path)."""
    evaluation = config.evaluate
    results = evaluate(model, chosen(datasets, evaluation), evaluation.evaluators, split=evaluation.split)
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
    """The data sets that the config evaluates on: those it names, else all."""
    return {name: datasets[name] for name in evaluation.folders or datasets}
