"""A run in which nothing gets done says where it hangs and ends; one that is busy otherwise is left alone."""

import subprocess
import sys
import time

from mammoclip_jax.training.goodput import Ledger
from mammoclip_jax.training.watchdog import EXIT_STATUS, Watchdog


class Run:
    kind, marks, step = "productive", 0, 4


def dog(tmp_path, seconds=30, evaluation=0):
    ends = []
    return Watchdog(Run(), tmp_path, seconds, evaluation, end=ends.append), ends


def test_a_silent_run_is_ended_and_its_stacks_are_kept(tmp_path, caplog):
    watchdog, ends = dog(tmp_path)
    for _ in range(4):
        watchdog.look(10)
    assert ends == [EXIT_STATUS] == [75]
    assert "test_a_silent_run_is_ended" in (tmp_path / "hung_step_5.txt").read_text()
    assert "hung_step_5.txt" in caplog.text


def test_a_step_done_starts_the_wait_anew(tmp_path):
    watchdog, ends = dog(tmp_path)
    for _ in range(20):
        watchdog.look(10)
        watchdog.look(10)
        watchdog.ledger.marks += 1
    assert not ends


def test_what_is_not_training_may_last(tmp_path):
    watchdog, ends = dog(tmp_path)
    for kind in ("compile", "evaluation", "checkpoint", "startup"):
        watchdog.ledger.kind = kind
        for _ in range(10):
            watchdog.look(10)
    assert not ends


def test_an_evaluation_has_a_longer_time_of_its_own(tmp_path, caplog):
    watchdog, ends = dog(tmp_path, evaluation=70)
    watchdog.ledger.kind = "evaluation"
    for _ in range(7):
        assert not ends
        watchdog.look(10)
    watchdog.look(10)
    assert ends == [EXIT_STATUS] and "the evaluation after step 4 has not ended in 70 s" in caplog.text
    assert "watchdog_evaluation_seconds" in caplog.text and (tmp_path / "hung_step_4.txt").exists()


def test_zero_switches_it_off(tmp_path):
    with Watchdog(Ledger(tmp_path), tmp_path, 0, end=lambda status: 1 / 0) as watchdog:
        time.sleep(0.01)
    assert not list(tmp_path.glob("hung*")) and not watchdog.limits


def test_a_process_that_hangs_ends_with_the_status_that_launchers_try_again(tmp_path):
    code = (
        "import sys, time\n"
        "from mammoclip_jax.training.goodput import Ledger\n"
        "from mammoclip_jax.training.watchdog import Watchdog\n"
        "ledger = Ledger(sys.argv[1])\n"
        "def hangs():\n    time.sleep(600)\n"
        "with Watchdog(ledger, sys.argv[1], 0.5), ledger.phase('productive'):\n    hangs()\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=300).returncode == EXIT_STATUS
    assert "in hangs" in (tmp_path / "hung_step_1.txt").read_text()
