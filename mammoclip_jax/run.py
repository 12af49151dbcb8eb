"""The whole pretraining job of a config: data, model, training, evaluation, report."""

import json
import logging
import time
from pathlib import Path

import jax
from clu import parameter_overview

from mammoclip_jax import config as config_module
from mammoclip_jax import inference, losses, models, provenance
from mammoclip_jax.data import pipeline, tokenizer
from mammoclip_jax.data.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluate import evaluate
from mammoclip_jax.evaluation.result import scalars
from mammoclip_jax.prepare import prepare
from mammoclip_jax.training import loop
from mammoclip_jax.training.mesh import check_batch_size, make_mesh
from mammoclip_jax.training.optimizer import make_optimizer
from mammoclip_jax.training.step import init_state, init_variables, make_train_step


def pretrain(config, workdir) -> dict:
    """Runs the job to its end, going on from what `workdir` holds.

    Returns:
        step, loss, images_per_second, data_wait_share, seconds, metrics {name: {value, low, high, n}}, report.

    Raises:
        UserError: the config or the data are wrong.
        loop.Stopped: the run was asked to stop, and has saved.
    """
    started = time.monotonic()
    config_module.check(config)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    enable_compilation_cache(config.compilation_cache)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.train.batch_size, mesh)
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
    state, step_fn = build_training(config, tokenize.vocab_size, meta["preprocessing"], mesh)
    curve = Curve(config, datasets, meta, mesh)
    outcome = loop.fit(step_fn, state, iterator, mesh=mesh, config=config, workdir=workdir, meta=meta,
                       evaluate=curve if config.evaluate.curve_evaluators else None)
    return {"step": int(outcome.state.step), "seconds": time.monotonic() - started} | outcome.metrics


def enable_compilation_cache(folder: str) -> None:
    """Compiled programs are kept in `folder`, so that a restart does not compile again; '' switches it off."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def open_datasets(config, workdir) -> dict[str, Dataset]:
    """The dataset folders of `config.data.folders`, prepared first where `config.data.prepare` says how.

    `{workdir}` in a path stands for the run's folder.
    """
    def place(value):
        return value.format(workdir=workdir) if isinstance(value, str) else value

    datasets = {}
    for name, folder in config.data.folders.items():
        if name in config.data.prepare:
            options = {key: place(value) for key, value in config.data.prepare[name].items()}
            counts = prepare(out=place(folder), **options)
            logging.info("%s: %s", name, ", ".join(f"{value} {key}" for key, value in counts.items()
                                                   if isinstance(value, int)))
        datasets[name] = Dataset.open(place(folder))
    return datasets


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
    wanted = first.info["preprocessing"]
    for name, dataset in others:
        found = dataset.info["preprocessing"]
        different = [key for key in wanted | found if wanted.get(key) != found.get(key)]
        if different:
            key = different[0]
            raise UserError(f"{first_name} ({first.path}) and {name} ({dataset.path}) were prepared differently: "
                            f"{key} is {wanted.get(key)!r} and {found.get(key)!r}. Prepare one of them again.")
    return wanted


def train_iterator(config, datasets, tokenize):
    """This process's checkpointable Grain iterator of training batches."""
    data = config.data
    return pipeline.train_iterator(
        list(datasets.values()), tokenize, split="train", batch_size=config.train.batch_size // jax.process_count(),
        views=data.views, texts=data.texts, text_length=data.text_length, seed=config.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
        flip_horizontal=data.flip_horizontal, flip_vertical=data.flip_vertical,
        shuffle_sentences=data.shuffle_sentences, read_threads=data.read_threads)


def build_training(config, vocab_size: int, preprocessing: dict, mesh):
    """(initial TrainState, step function) of a config; prints the table of parameters."""
    model = models.build(config.model, vocab_size)
    preprocess = inference.preprocess_options(config)
    image_shape = (preprocessing["height"], preprocessing["width"], preprocess.channels)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    initialise = jax.jit(lambda key: init_variables(model, key, image_shape, config.data.text_length))
    optimizer = make_optimizer(config.train, jax.eval_shape(initialise, init_key)["params"])
    state = init_state(initialise(init_key), optimizer, state_key, config.train)
    logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False, max_lines=40))
    step_fn = make_train_step(model, optimizer, losses.build(config.losses), preprocess, config.train, mesh)
    return state, step_fn


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
        results = evaluate(self.model, with_split(self.datasets, evaluation, evaluation.curve_split),
                           {name: dict(options, split=evaluation.curve_split)
                            for name, options in evaluation.curve_evaluators.items()})
        return scalars(results)


def with_split(datasets, evaluation, split: str) -> dict[str, Dataset]:
    """The data sets that the config evaluates on: those it names, else all that have images in `split`."""
    names = evaluation.folders or [name for name, dataset in datasets.items() if (dataset.index["split"] == split).any()]
    return {name: datasets[name] for name in names}
