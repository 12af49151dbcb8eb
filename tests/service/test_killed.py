"""The service as a process that is killed: nothing that it acknowledged is lost, by HTTP or DICOM."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydicom.uid import generate_uid
from serving import ask, finished, instance, upload, wait_for
from test_dicom_nodes import free_port, store

HERE = Path(__file__).parent


@contextlib.contextmanager
def process(folder, port, pause, quiet):
    """(process, address) of a service that is ready."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "data"), str(HERE.parents[1])])
    own = subprocess.Popen(
        [sys.executable, HERE / "serve_fake.py", folder / "spool", str(port), str(pause), str(quiet)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        address = own.stdout.readline().strip()
        wait_for(lambda: ask(address, "GET", "/health")[0] == 200)
        yield own, address
    finally:
        own.kill()
        own.wait()
        own.stdout.close()


def children(pid):
    """Processes that this one has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for path in lists for child in path.read_text().split()}


def running(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at /proc")
def test_killed_in_the_middle_it_loses_nothing_that_it_acknowledged(tmp_path):
    port, study = free_port(), generate_uid()
    uploads = [instance(tmp_path, generate_uid()) for _ in range(60)]
    instances = [instance(tmp_path, study) for _ in range(3)]
    taken, enough = [], threading.Event()

    def send(address):
        with contextlib.suppress(OSError):  # it is killed meanwhile
            for path in uploads:
                status, _, said = upload(address, path)
                if status in (200, 202):
                    taken.append(said["id"])
                if len(taken) == 5:
                    enough.set()

    with process(tmp_path, port, pause=0.2, quiet=1e6) as (own, address):
        sending = threading.Thread(target=send, args=(address,))
        sending.start()
        assert store(port, *instances) == [0, 0, 0]
        assert enough.wait(300)
        wait_for(lambda: list((tmp_path / "spool" / "scoring").iterdir()))
        mine = children(own.pid)
        os.kill(own.pid, signal.SIGKILL)
        sending.join()
        own.wait()
        assert own.returncode == -signal.SIGKILL and mine
        wait_for(lambda: not any(running(pid) for pid in mine))  # the model's process does not outlive it
    spool = tmp_path / "spool"
    states = ("received", "scoring", "done")
    there = {path.name for state in states for path in (spool / state).iterdir() if "-" not in path.name}
    assert 5 <= len(taken) < len(uploads) and {*taken} <= there
    assert len(list(spool.glob("*/*-1/files/*"))) == 3
    with process(tmp_path, port, pause=0.0, quiet=0.1) as (own, address):
        assert all(finished(address, id)["state"] == "done" for id in taken)
        (exam,) = wait_for(lambda: list((spool / "done").glob("*-1")))
        assert finished(address, exam.name)["result"]["exams"][0]["views"] == 3
        own.send_signal(signal.SIGTERM)  # and a stop that asks is answered
        assert own.stdout.readline() == "stopped\n" and own.wait() == 0
    assert not (spool / "lock").exists()
