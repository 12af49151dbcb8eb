"""How a process finds its place among others, and what it says when it cannot."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.training import distributed
from mammoclip_jax.training.processes import barrier

ROOT = Path(__file__).parents[2]
SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "node[1-2]"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}


def place(coordinator="", processes="", process="", **environment):
    return distributed.find_place(coordinator, processes, process, environment)


def test_the_precision_of_products_is_named(monkeypatch):
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    before = jax.config.jax_default_matmul_precision
    try:
        for name, wanted in (("bf16", "bfloat16"), ("float32", "float32"), ("default", None)):
            distributed.choose_products(name)
            assert jax.config.jax_default_matmul_precision == wanted
        monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
        distributed.choose_products("default")
        assert jax.config.jax_default_matmul_precision == "highest"
        with pytest.raises(UserError, match="config.model.matmul.*'fp32'"):
            distributed.choose_products("fp32")
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_alone_nothing_happens():
    assert place() is None and place(processes="1") is None
    assert place(**SLURM | {"SLURM_NTASKS": "1"}) is None
    # The batch script, not a task that srun has started: the other tasks will never come.
    assert place(SLURM_NTASKS="8", SLURM_PROCID="0") is None


def test_explicit_arguments():
    assert place("10.0.0.1:1234", "4", "3") == distributed.Place("10.0.0.1:1234", 4, 3)
    assert place("[::1]:1234", "2", "0").coordinator == "[::1]:1234"


@pytest.mark.parametrize(
    "environment",
    [SLURM, OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, {"TPU_WORKER_HOSTNAMES": "one,two"}],
)
def test_what_jax_knows_it_finds_out(environment):
    assert place(**environment) == "auto"


def test_auto_asks_jax_in_any_case():
    assert place(processes="auto") == "auto"


def test_a_launcher_fills_in_what_is_not_said():
    assert place("host:1", **OPEN_MPI) == distributed.Place("host:1", 4, 1)
    assert place("host:1", **SLURM) == distributed.Place("host:1", 8, 3)


def test_processes_that_do_not_know_where_to_meet_do_not_train_side_by_side():
    with pytest.raises(UserError, match="Open MPI started 4 processes.*--coordinator=HOST:PORT"):
        place(**OPEN_MPI)


@pytest.mark.parametrize(
    "values, message",
    [
        (("host:1", "2", ""), "--process is missing.*JAX_PROCESS_ID"),
        (("host:1", "", "0"), "--processes is missing"),
        (("", "2", "0"), "--coordinator is missing"),
        (("host", "2", "0"), "--coordinator=host must be HOST:PORT"),
        (("host:99999", "2", "0"), "must be HOST:PORT"),
        (("host:1", "two", "0"), "--processes=two must be a whole number from 1 on, or auto"),
        (("host:1", "0", "0"), "--processes=0 must be"),
        (("host:1", "2", "-1"), "--process=-1 must be a whole number from 0"),
        (("host:1", "2", "2"), "--process=2 is out of range: 2 processes are numbered 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(values, message):
    with pytest.raises(UserError, match=message):
        place(*values)


def test_the_environment_is_read_where_a_flag_is_not_given(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    with pytest.raises(UserError, match="--process=5 is out of range"):
        distributed.connect(process="5")
    monkeypatch.setenv("JAX_PROCESS_ID", "7")
    with pytest.raises(UserError, match="--process=7 is out of range"):
        distributed.connect()


def test_a_single_process_waits_for_nobody(tmp_path):
    barrier("alone")
    with distributed.main_first("alone"):
        assert distributed.is_main()
    distributed.share_workdir(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="mine"), distributed.failing_together():
        raise UserError("mine")


@pytest.mark.parametrize(
    "process, message",
    [
        (0, "This is process 0, and not all of the other 1 came"),
        (1, "It cannot be reached (.*refused.*): look whether process 0 runs"),
    ],
)
def test_a_process_that_waits_in_vain_ends_and_says_what_to_look_at(process, message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "from mammoclip_jax.training import distributed; "
        f"distributed.connect('127.0.0.1:{port}', '2', '{process}', patience=2)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=100,
        text=True,
        capture_output=True,
    )
    assert run.returncode == 2
    before, _, after = message.partition(" (.*refused.*)")
    assert f"error: not all processes met at 127.0.0.1:{port} within 2 s" in run.stderr
    assert before in run.stderr and after in run.stderr
