"""What README says under "To add": a made-up part, one file and one line in its table, and a config may name it."""

import ast
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax import __main__ as listing
from mammoclip_jax import evaluation, explain, losses, models, tasks
from mammoclip_jax.config import defaults
from mammoclip_jax.data import sources
from mammoclip_jax.data.from_source import read
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.options import plan
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.models.layers import nn
from mammoclip_jax.types import Embeddings

PACKAGE = Path(listing.__file__).parent


@pytest.fixture
def add(monkeypatch):
    """(folder of the package, table, its line, what the file foo.py there holds)."""

    def add(folder, table, line, **content):
        module = types.ModuleType(f"mammoclip_jax.{folder}.foo")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(table, "foo", line)

    return add


def test_an_image_encoder(add):
    class Foo(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x, train, offsets={}):
            stage = nn.Conv(self.width, (4, 4), strides=4)(x)
            return stage.mean(axis=(1, 2)), {"head": stage + offsets.get("head", 0)}

    add("models", models.IMAGE_ENCODERS, "foo.Foo", Foo=lambda dtype, width=4: Foo(width))
    model = models.classifier(
        {
            "image": {"name": "foo", "width": 6},
            "labels": ("mass",),
            "activation": "sigmoid",
            "combine": "mean",
            "dtype": "float32",
        }
    )
    logits, stages = model.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 1)), train=False)[0]
    assert logits.shape == (2, 1) and stages["head"].shape == (2, 2, 2, 6)


def test_a_loss(add):
    def foo(embeddings, batch, mesh, power=2):
        return (embeddings.image**power).sum(), {"power": jnp.float32(power)}

    add("losses", losses.LOSSES, "foo.foo", foo=foo)
    foo.needs = ("image/head",)
    (term,) = losses.build({"foo": {"weight": 0.5, "power": 3}})
    value, metrics = term.function(Embeddings(2 * jnp.ones((1, 1, 1)), None, None), {}, None)
    assert (term.weight, term.needs, float(value), float(metrics["power"])) == (0.5, ("image/head",), 8.0, 3.0)


def test_a_head(add):
    class Foo(nn.Module):
        scale: float
        dtype: object
        needs = ("image/pooled",)

        @nn.compact
        def __call__(self, inputs, train):
            return {"vectors": self.scale * nn.Dense(3)(inputs["image/pooled"])}

    add("models", models.HEADS, "foo.Foo", Foo=Foo)
    heads = models.heads_of({"foo": {"scale": 2.0}, "other": {"kind": "foo", "scale": 0.0}})
    inputs = {"image/pooled": jnp.ones((1, 2, 4))}
    made, variables = heads.init_with_output(jax.random.key(0), "foo", inputs, False)
    assert made["foo/vectors"].shape == (1, 2, 3) and set(variables["params"]) == {"foo"}
    with pytest.raises(UserError, match="config.model.heads.foo has no scale"):
        models.heads_of({"foo": {}})


def test_a_data_set(add, tmp_path):
    def foo(root, side="L"):
        row = {
            "dataset": "foo",
            "patient": "p",
            "study": "s",
            "image": "i",
            "file": "i.png",
            "laterality": side,
            "view": "CC",
            "split": "train",
        }
        return SourceTable(frame([row]), [], "CC0", "made up", public_ids=True)

    add("data.sources", sources.SOURCES, "foo", read=foo)
    assert read("foo", tmp_path, {"side": "R"}).rows["laterality"].tolist() == ["R"]
    with pytest.raises(UserError, match="sied"):
        read("foo", tmp_path, {"sied": "R"})


def test_an_evaluator(add):
    def foo(model, dataset, *, split="test", times=1):
        metrics = {"images": statistics.entry(float(times * len(dataset.index)), n=len(dataset.index))}
        return Result("foo", "Counts images.", metrics, {})

    add("evaluation.evaluators", evaluation.EVALUATORS, "foo.foo", foo=foo)
    function, options, _ = plan(SimpleNamespace(kind="classifier"), "foo", {"times": 3})
    found = function(None, SimpleNamespace(index=pd.DataFrame({"image": list("ab")})), **options)
    assert found.metrics["images"]["value"] == 6


def test_a_saliency_method(add):
    def foo(subject, pixels, direction, stage, *, scale=1.0):
        return scale * pixels[0, ..., 0]

    add("explain", explain.METHODS, explain.Method("foo", "foo.foo", "image"), foo=foo)
    function = explain.function_of("foo", {"scale": 2.0})
    np.testing.assert_array_equal(function(None, np.ones((1, 2, 2, 1)), None, "", scale=2.0), 2)


def test_a_task(add):
    from mammoclip_jax.tasks import classification

    def check(config):
        if config.model.dim != 7:
            raise UserError("foo wants config.model.dim=7.")

    names = ("COMMAND", "split", "load_tokenizer", "prepare", "start")
    add(
        "tasks",
        tasks.TASKS,
        "foo",
        MODEL="classifier",
        READS=classification.READS,
        check=check,
        **{name: getattr(classification, name) for name in names},
    )
    config = defaults()
    config.data.folders.films = "films"
    config.task.kind = "foo"
    with pytest.raises(UserError, match="nothing reads config.losses.clip"):
        config.losses.clip = dict(weight=1.0)
        tasks.check(config)
    config.losses = {}
    with pytest.raises(UserError, match="wants config.model.dim"):
        tasks.check(config)
    assert tasks.task_of(config).MODEL == "classifier"


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_every_task_has_what_a_task_has(kind):
    config = defaults()
    config.task.kind = kind
    task = tasks.task_of(config)
    for name in ("MODEL", "COMMAND", "READS", "check", "network", "split", "load_tokenizer", "prepare", "start"):
        assert hasattr(task, name), name
    assert any(task.MODEL in kinds for kinds in evaluation.MODELS.values()) and task.COMMAND in listing.COMMANDS


def test_every_command_is_listed(capsys):
    def is_command(path):
        return any(
            isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
            for node in ast.parse(path.read_text()).body
        )

    files = {path.stem for path in PACKAGE.glob("*.py") if is_command(path)} - {"__main__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert files | folders == set(listing.COMMANDS)
    assert all(listing.summary(name).endswith(".") for name in listing.COMMANDS)
