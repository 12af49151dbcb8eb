"""Shards on Apache Beam: every item once, whatever the runner; failures and a missing package in plain words."""

import functools
import operator
import sys
from pathlib import Path

import pytest

from mammoclip_jax.data import beam
from mammoclip_jax.data.pool import ordered_map
from mammoclip_jax.errors import UserError


def _write(folder: Path, number: int) -> None:
    """As a shard is written: with a process pool of its own."""
    values = list(ordered_map(functools.partial(operator.mul, number), range(4), workers=1))
    (folder / str(number)).write_text(repr(values))


def _fail(number: int) -> None:
    raise ValueError(f"shard {number} is out of order")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--direct_running_mode=in_memory",), ("--direct_running_mode=multi_processing", "--direct_num_workers=2")],
)
def test_every_item_is_worked_on(tmp_path, monkeypatch, options):
    pytest.importorskip("apache_beam")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the workers import this file by name
    beam.run(functools.partial(_write, tmp_path), [1, 2, 3], "DirectRunner", options)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "1": "[0, 1, 2, 3]",
        "2": "[0, 2, 4, 6]",
        "3": "[0, 3, 6, 9]",
    }


def test_a_failure_names_its_cause():
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="failed: .*shard 7 is out of order"):
        beam.run(_fail, [7], "DirectRunner", ["--direct_running_mode=in_memory"])


def test_without_beam_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install mammoclip_jax\[beam\]"):
        beam.run(print, [1], "DirectRunner")


def test_an_unknown_runner_is_refused():
    with pytest.raises(UserError, match="DirectRunner"):
        beam.run(print, [1], "DirectRuner")
