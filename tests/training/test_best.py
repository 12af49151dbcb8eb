"""The best state of the evaluations on the way is kept, found again after a kill, and ends the wait for a better one."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.training.best import Best
from mammoclip_jax.training.checkpoint import load
from mammoclip_jax.types import TrainState

META = {"kind": "classifier"}


def state(step):
    return TrainState(jnp.int32(step), {"w": jnp.full(3, float(step))}, {}, {}, None, jax.random.key(0))


def iterator():
    return types.SimpleNamespace(get_state=lambda: {"batches": 1}, set_state=lambda state: None)


def run(folder, values, patience=0, resumed=0, better="higher"):
    """A `Best` after evaluations at steps 10, 20, ... beyond `resumed`."""
    best = Best(folder, "auroc", patience, resumed, better)
    for number, value in enumerate(values, 1 + resumed // 10):
        if best.over:
            break
        best.update(10 * number, {"auroc": value}, state(10 * number), iterator(), META)
    return best


def test_the_highest_is_kept_and_loads_as_a_run(tmp_path):
    best = run(tmp_path, [0.5, 0.8, 0.7])
    np.testing.assert_array_equal(best.restore(state(30), iterator()).params["w"], [20, 20, 20])
    step, variables, meta = load(tmp_path / "best")
    assert step == 20 and meta == META and variables["params"]["w"][0] == 20


def test_training_ends_when_none_was_better_for_so_long(tmp_path):
    assert run(tmp_path, [0.5, 0.8, 0.7, 0.8, 0.9], patience=2).over
    noted = json.loads((tmp_path / "best.json").read_text())
    assert (noted["monitor"], noted["better"]) == ("auroc", "higher")
    assert [entry["step"] for entry in noted["evaluations"]] == [10, 20, 30, 40]


def test_the_lowest_is_kept_where_less_is_better(tmp_path):
    best = run(tmp_path, [0.5, 0.2, 0.3, 0.4], patience=2, better="lower")
    assert best.over and best.restore(state(40), iterator()).params["w"][0] == 20
    with pytest.raises(UserError, match="there is no config.task.better 'less'"):
        Best(tmp_path / "other", "auroc", 0, 0, "less")


def test_a_run_does_not_go_on_by_another_figure(tmp_path):
    run(tmp_path, [0.5])
    with pytest.raises(
        UserError, match="config.task.monitor: 'auroc' -> 'brier', config.task.better: 'higher' -> 'lower'"
    ):
        Best(tmp_path, "brier", 0, 10, "lower")


def test_a_run_that_goes_on_from_before_the_best_finds_it_again(tmp_path):
    """Killed after the best of step 30 was saved, before the run's own checkpoint of that step was."""
    run(tmp_path, [0.5, 0.6, 0.9])
    again = run(tmp_path, [], resumed=20)
    np.testing.assert_array_equal(again.restore(state(20), iterator()).params["w"], [20, 20, 20])
    again = run(tmp_path, [0.55, 0.9], resumed=20)
    np.testing.assert_array_equal(again.restore(state(40), iterator()).params["w"], [40, 40, 40])


def test_a_figure_that_is_not_there_or_no_number_is_named(tmp_path):
    with pytest.raises(UserError, match="auroc.*f1"):
        Best(tmp_path, "auroc", 0, 0).update(10, {"f1": 1.0}, state(10), iterator(), META)
    with pytest.raises(UserError, match="nan at step 10"):
        run(tmp_path, [float("nan")])
