"""The ledger adds up to the wall time, whatever ended the attempts, and knows which steps were done in vain."""

import json
import os

import pytest

from mammoclip_jax.training import goodput
from mammoclip_jax.training.goodput import Ledger, summarise


class Clock:
    """One clock for what never jumps and for the time of day."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def __iadd__(self, seconds):
        self.now += seconds
        return self


@pytest.fixture
def clock():
    return Clock()


def ledger(tmp_path, clock, **options):
    return Ledger(tmp_path, clock=clock, wall=clock, **options)


def kill(own, path, clock):
    """The process is gone: the file's time stays as it is."""
    own._closed.set()
    os.utime(path / goodput.NAME, (clock.now, clock.now))


def rounded(summary):
    return {kind: round(value, 3) for kind, value in summary["seconds"].items() if round(value, 3)}


def test_one_attempt_adds_up(tmp_path, clock):
    own = ledger(tmp_path, clock, before=8.0)
    clock += 2
    own.resumed(0)
    with own.phase("productive"):
        with own.phase("compile"):
            clock += 30
        for step in range(1, 11):
            clock += 5
            own.move(0.5, "data_wait")
            own.done(step)
        with own.phase("evaluation"):
            clock += 7
        with own.phase("checkpoint"):
            clock += 3
    summary = own.summary()
    assert rounded(summary) == {
        "startup": 10,
        "compile": 30,
        "data_wait": 5,
        "productive": 45,
        "evaluation": 7,
        "checkpoint": 3,
    }
    assert summary["wall"] == 100 and summary["goodput"] == 0.45 and summary["attempts"] == 1 and summary["idle"] == 0
    own.close()
    assert summarise(goodput.read(tmp_path / goodput.NAME)) == summary
    assert "goodput 45.0% of 100 s in 1 attempt: startup 10 s (10.0%)" in goodput.sentence(summary)


def train(own, clock, steps, save_at=()):
    with own.phase("productive"):
        for step in steps:
            clock += 1
            own.done(step)
            if step in save_at:
                with own.phase("checkpoint"):
                    clock += 2


def test_steps_after_the_last_checkpoint_and_what_was_being_done_are_lost(tmp_path, clock):
    own = ledger(tmp_path, clock)
    own.resumed(0)
    train(own, clock, range(1, 7), save_at=(4,))  # 6 s of steps and 2 s of saving
    own.turn_to("evaluation")
    clock += 9  # killed in it
    kill(own, tmp_path, clock)
    clock += 50  # nothing runs
    own = ledger(tmp_path, clock, before=1.0)
    clock += 3
    own.resumed(4)
    train(own, clock, range(5, 11))
    own.close()
    summary = own.summary()
    assert rounded(summary) == {"productive": 4 + 6, "lost": 2 + 9, "checkpoint": 2, "startup": 4}
    assert summary["idle"] == 49 and summary["attempts"] == 2  # the second began a second before its ledger
    assert summary["wall"] == pytest.approx(27)


def test_walking_back_over_attempts_loses_their_steps(tmp_path, clock):
    for resumed, steps, saved in ((0, range(1, 7), (6,)), (6, range(7, 13), (9, 12)), (6, range(7, 15), (9, 12))):
        own = ledger(tmp_path, clock)  # the third found the second's checkpoints damaged
        own.resumed(resumed)
        train(own, clock, steps, save_at=saved)
        kill(own, tmp_path, clock)
    assert rounded(own.summary() or {}) == {"productive": 6 + 8, "lost": 6, "checkpoint": 10}


def test_an_attempt_killed_at_its_start_is_lost_and_does_not_count_steps(tmp_path, clock):
    own = ledger(tmp_path, clock)
    own.resumed(0)
    train(own, clock, range(1, 4), save_at=(3,))
    kill(own, tmp_path, clock)
    own = ledger(tmp_path, clock)
    clock += 5
    kill(own, tmp_path, clock)
    summary = summarise(goodput.read(tmp_path / goodput.NAME), clock.now)
    assert rounded(summary) == {"productive": 3, "checkpoint": 2, "lost": 5}


def test_a_row_cut_short_is_left_out_and_the_next_is_not_spoilt(tmp_path, clock):
    own = ledger(tmp_path, clock)
    clock += 4
    own.resumed(0)
    kill(own, tmp_path, clock)
    with (tmp_path / goodput.NAME).open("a") as file:
        file.write('{"attempt": 0, "time": 10')
    own = ledger(tmp_path, clock)
    own.resumed(0)
    rows = goodput.read(tmp_path / goodput.NAME)
    assert [row["attempt"] for row in rows] == [0, 0, 1, 1]
    assert own.summary()["seconds"]["startup"] == 4


def test_a_copied_ledger_does_not_count_the_time_until_it_was_copied(tmp_path, clock):
    own = ledger(tmp_path, clock)
    clock += 4
    own.resumed(0)
    kill(own, tmp_path, clock)
    clock += 100
    os.utime(tmp_path / goodput.NAME, (clock.now + 1000,) * 2)
    summary = ledger(tmp_path, clock).summary()
    assert summary["wall"] <= 104 and summary["idle"] >= 0


def test_the_file_grows_by_a_row_in_ten_seconds_of_training(tmp_path, clock):
    own = ledger(tmp_path, clock)
    own.resumed(0)
    train(own, clock, range(1, 101))
    assert len(goodput.read(tmp_path / goodput.NAME)) <= 4 + 10


def test_other_processes_count_and_do_not_write(tmp_path, clock):
    own = ledger(tmp_path, clock, active=False)
    with own.phase("productive"):
        clock += 3
    assert own.seconds("productive") == 3 and own.summary() == {} and not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_the_run(tmp_path, clock, monkeypatch, caplog):
    own = ledger(tmp_path, clock)
    monkeypatch.setattr(own, "path", tmp_path / "no" / "such" / "folder")
    own.resumed(0)
    assert "cannot be written" in caplog.text


def test_a_summary_is_json():
    assert json.loads(json.dumps(summarise([])))["goodput"] == 0


def test_the_age_of_this_process_is_known():
    assert 0 <= goodput.process_age() < 24 * 3600
