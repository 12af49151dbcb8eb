"""Every config in configs/ describes a model that builds, with the published numbers where it reproduces a paper."""

import importlib.util
import operator
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mammoclip_jax import losses, models, tasks
from mammoclip_jax.check import check
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.options import plan
from mammoclip_jax.training import augment
from mammoclip_jax.training.optimizer import make_optimizer
from mammoclip_jax.training.step import init_variables

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
BERT_BASE = 109_482_240 - 768 * 768 - 768  # bert-base-uncased's 30,522 tokens, without the pooler


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def abstract_params(config, image_shape, vocab_size=30_522):
    model = models.build(config.model, vocab_size)
    shape = (*image_shape, config.image.channels)
    return jax.eval_shape(lambda key: init_variables(model, key, shape, config.data.text_length), jax.random.key(0))[
        "params"
    ]


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path):
    config = load(path.stem)
    assert f"--config=configs/{path.name}" in path.read_text(), "the comment on top gives the command"
    if not config.model.image:  # of an evaluation alone
        plans = [
            plan(SimpleNamespace(kind="image_encoder"), name, dict(options))
            for name, options in config.evaluate.evaluators.items()
        ]
        assert plans
        return
    if config.task.fold < 0:  # all folds, in turn
        config.task.fold = 0
    check(config)
    if config.task.kind != "pretrain":
        check_labelled(config)
        return
    params = abstract_params(config, (1520, 912))
    make_optimizer(config.train, params)
    assert losses.build(config.losses) and augment.preprocess_options(config)


def check_labelled(config):
    """The config of a task with labels builds, its evaluators are for it, and one of them gives what is monitored."""
    task = tasks.task_of(config)
    wanted = task.target(config)
    model = {"attributes": models.attribute_model}.get(task.MODEL) or getattr(models, task.MODEL)
    model = model(config.model)
    image = jax.ShapeDtypeStruct((1, 320, 224, config.image.channels), np.float32)
    params = jax.eval_shape(lambda key, image: model.init(key, image, train=False), jax.random.key(0), image)["params"]
    make_optimizer(config.train, params, config.model.frozen)
    for evaluators in (config.evaluate.evaluators, config.evaluate.validation_evaluators):
        for name, options in evaluators.items():
            plan(SimpleNamespace(kind=task.MODEL), name, dict(options))
    if not config.task.monitor:
        return
    start, folder, evaluator, label, _ = config.task.monitor.split("/")
    assert start == "eval" and folder in config.data.folders and evaluator in config.evaluate.validation_evaluators
    assert label in (wanted.values_of, *wanted.labels) and config.train.eval_every


@pytest.mark.parametrize(
    "name, image_tower, features", [("mammoclip_b5", 28_340_784, 2048), ("mammoclip_b2", 7_700_994, 1408)]
)
def test_published_recipe(name, image_tower, features):
    config = load(name)
    params = abstract_params(config, (1520, 912))
    assert count(params["image_encoder"]) == image_tower
    assert count(params["text_encoder"]) == BERT_BASE
    assert params["image_projection"]["dense"]["kernel"].shape == (features, 512)
    assert params["text_projection"]["dense"]["kernel"].shape == (768, 512)
    train = config.train
    assert (train.lr, train.weight_decay, train.warmup_steps * 10) == (5e-5, 1e-4, train.steps)
    assert dict(config.losses.mammo_clip) == dict(weight=1.0, image_text=1.0, image_image=1.0, text_text=0.5)
    assert (config.image.mean, config.image.std) == (0.3089279, 0.25053555408335154)


def test_impossible_configs_are_explained():
    for change, message in (
        (dict(warmup_steps=540), "warmup_steps"),
        (dict(keep_checkpoints=0), "must be 1 or more"),
        (dict(batch_size=1), "batch_size=1: a contrast needs other breasts"),
    ):
        config = load("demo")
        config.train.update(change)
        with pytest.raises(UserError, match=message):
            tasks.check(config)
    config = load("demo")
    config.model.image.name = "efficientnett"
    with pytest.raises(UserError, match="Did you mean 'efficientnet'"):
        models.build(config.model, 100)
    config = load("demo")
    config.model.image.vairant = "b1"
    with pytest.raises(UserError, match="Did you mean 'variant'"):
        models.build(config.model, 100)
    with pytest.raises(AttributeError, match='Did you mean "lr"'):
        config.train.lrr = 1


@pytest.mark.parametrize(
    "name, part, values, said",
    [
        ("phantom_classifier", "model.lora", dict(pattern="x", rank=2), "config.model.lora.pattern='x'.*'classifier'"),
        ("phantom_classifier", "task", dict(focal_gamma=1.0), "focal_gamma"),
        ("demo", "task", dict(folds=5), "task.folds=5"),
        ("phantom_classifier", "data", dict(captions="mama"), "captions"),
        ("demo", "model", dict(labels=("mass",)), "labels"),
        ("phantom_detector", "task", dict(pos_weight="balanced"), "pos_weight"),
        ("phantom_detector", "train.micro_batches", dict(image=2), "micro_batches"),
        ("phantom_detector", "losses", dict(mammo_clip=dict(weight=1.0)), "losses.mammo_clip.weight"),
    ],
)
def test_options_that_the_task_does_not_use_are_an_error(name, part, values, said):
    config = load(name)
    operator.attrgetter(part)(config).update(values)
    with pytest.raises(UserError, match=f"nothing reads .*{said}"):
        tasks.check(config)


def test_an_unknown_field_on_the_command_line_names_the_nearest(tmp_path):
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mammoclip_jax.pretrain",
            "--config=configs/demo.py",
            f"--workdir={tmp_path}",
            "--config.train.warmup_step=1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode != 0
    assert "Traceback" not in found.stderr, found.stderr
    assert re.search("no field .warmup_step. .*Did you mean .warmup_steps.", found.stderr), found.stderr


def test_bert_base_count_is_the_published_one():
    """30,522 x 768 words, 512 positions, 2 types, 12 layers of 7,087,872, and a LayerNorm."""
    assert BERT_BASE == (30_522 + 512 + 2 + 2) * 768 + 12 * 7_087_872
