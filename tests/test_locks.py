"""One process at a time: the second is told who is there, and what a dead one left is taken over."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from mammoclip_jax import locks, run
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import distributed

HOLD = """
import sys
from mammoclip_jax.locks import locked
with locked(sys.argv[1], "training in x", "use another"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path, watch=0.3):
    return locks.locked(path, "training in x", "use another --workdir", watch)


def note(host, process=1):
    return json.dumps({"host": host, "process": process, "since": "2026-01-31T10:00:00+00:00"})


def test_a_second_process_is_told_who_is_there_and_a_dead_one_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        wanted = (
            rf"process {other.pid} on host '{socket.gethostname()}', since .* is training in x.*use another --workdir"
        )
        with pytest.raises(UserError, match=wanted):
            with hold(path):
                pass
    finally:
        other.kill()
        other.communicate()
    assert json.loads(path.read_text())["process"] == other.pid  # it could not take it away
    with hold(path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()


def test_it_is_let_go_when_the_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / ".lock"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", note("elsewhere"), note("elsewhere")[:20]])
def test_what_a_dead_process_of_another_host_left_is_taken_over(tmp_path, text):
    path = tmp_path / ".lock"
    path.write_text(text)
    with hold(path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("locks_of_the_system", [True, False])
def test_another_host_that_renews_its_lock_keeps_it(tmp_path, monkeypatch, locks_of_the_system):
    """Where the file system keeps locks within a host, or has none at all."""

    def none(*_):
        raise OSError("not supported")

    path = tmp_path / ".lock"
    path.write_text(note("elsewhere", 77))
    if not locks_of_the_system:
        monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(locks, "BEAT", 0.02)
    ended = threading.Event()
    with open(path) as file:
        heart = threading.Thread(target=locks._beat, args=(file.fileno(), ended))
        heart.start()
        try:
            with (
                pytest.raises(UserError, match=f"process 77 on host 'elsewhere', since 2026.*remove {path}"),
                hold(path, 60),
            ):
                pass
        finally:
            ended.set()
            heart.join()
    assert path.read_text() == note("elsewhere", 77)


def test_a_second_job_leaves_the_run_of_the_first_alone(tmp_path):
    config = defaults()
    config.compilation_cache = ""
    config.data.folders.films = "nowhere"
    config.losses.mammo_clip = dict(weight=1.0)
    config.model.image.name, config.model.text.name = "efficientnet", "bert"
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    with hold(tmp_path / distributed.LOCK):
        with pytest.raises(UserError, match=f"process {os.getpid()} on host .* is training in "):
            run.pretrain(config, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [distributed.LOCK, "metrics.jsonl"]
    with pytest.raises(UserError, match="nowhere is no finished data set"):  # free again
        run.pretrain(config, tmp_path)


def test_the_processes_of_one_job_share_a_run(tmp_path, monkeypatch):
    with distributed.alone_in(tmp_path):
        with pytest.raises(UserError, match="is training in"), distributed.alone_in(tmp_path):
            pass
        monkeypatch.setattr(distributed, "is_main", lambda: False)
        with distributed.alone_in(tmp_path):
            pass
