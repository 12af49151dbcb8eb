"""A run's log.txt: what the terminal is told, what is too long for it, and the error that ended it."""

import logging

import jax
import pytest

from mammoclip_jax import run
from mammoclip_jax.training import logs
from mammoclip_jax.training.mesh import describe, make_mesh


def test_the_log_has_what_the_terminal_is_told_and_more(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    handlers = list(logging.getLogger().handlers)
    with logs.kept(tmp_path):
        logging.info("step %d", 3)
        logs.note("| name | shape |")
    with pytest.raises(ValueError, match="odd"), logs.kept(tmp_path):
        raise ValueError("odd")
    logging.info("later")
    lines = (tmp_path / logs.NAME).read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["step 3", "| name | shape |", "ended by ValueError: odd"]
    assert "| name | shape |" not in caplog.text and logging.getLogger().handlers == handlers


def test_other_processes_have_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with logs.kept(tmp_path):
        logging.info("elsewhere")
    assert not list(tmp_path.iterdir())


def test_devices_and_parameters_are_a_line_each(tmp_path):
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    assert describe(mesh) == f"devices: 2 cpu; mesh: data 2, fsdp 1, space 1; 1 process, jax {jax.__version__}"
    params = {
        "head": {"kernel": jax.numpy.zeros((2, 3))},
        "tower": {"a": jax.numpy.zeros(1000), "b": jax.numpy.zeros(4)},
    }
    assert run.counted(params, tmp_path) == f"1,010 parameters (tower 1,004, head 6); all of them: {tmp_path}/log.txt"
