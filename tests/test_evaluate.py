"""The command line of evaluate: which model, and what it needs to know about it."""

from types import SimpleNamespace

import pytest

from mammoclip_jax import evaluate, inference
from mammoclip_jax.errors import UserError


def flags(**given):
    return SimpleNamespace(**{"workdir": "", "weights": "", "dataset": [], "evaluators": [], "out": "",
                              "batch_size": 4} | given)


@pytest.mark.parametrize("given, message", [
    ({}, "either --workdir=RUN or --weights"),
    ({"workdir": "a", "weights": "b"}, "either --workdir=RUN or --weights"),
    ({"weights": "b"}, "give --dataset, --evaluators, --out"),
    ({"weights": "b", "dataset": ["c"], "out": "d"}, "give --evaluators[.]"),
])
def test_one_model_and_what_no_config_says(given, message):
    with pytest.raises(UserError, match=message):
        evaluate.check_flags(flags(**given))


@pytest.mark.parametrize("given", [
    {"workdir": "a"}, {"weights": "b", "dataset": ["c"], "evaluators": ["zero_shot"], "out": "d"}])
def test_a_run_or_whole_instructions_are_enough(given):
    evaluate.check_flags(flags(**given))


def test_a_model_without_texts_is_refused(monkeypatch):
    monkeypatch.setattr(evaluate.flags, "FLAGS", flags(workdir="runs/classifier"))
    monkeypatch.setattr(inference, "load", lambda name, batch_size: SimpleNamespace(kind="classifier"))
    with pytest.raises(UserError, match="runs/classifier is a classifier; .* take a dual encoder"):
        evaluate.main([])
