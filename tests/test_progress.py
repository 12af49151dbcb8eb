"""Long work says how far it is: now and then where there is no terminal, a bar where there is one."""

import logging

import pytest

from mammoclip_jax import progress


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO)


def test_lines_come_now_and_then_with_rate_and_time_left(caplog):
    time = [0.0]
    with progress.named("phantom/zero_shot"), progress.Bar(100, "image", clock=lambda: time[0]) as bar:
        for now in (10, 20, 35, 40, 64, 66, 100):
            time[0] = now
            bar.update(10)
        bar.update(30)
    assert caplog.messages == [
        "phantom/zero_shot: 30 of 100 images, 1.2 s/image, 1:22 left",
        "phantom/zero_shot: 60 of 100 images, 1.1 s/image, 44 s left",
        "phantom/zero_shot: 70 of 100 images, 1.4 s/image, 43 s left",
    ]
    assert bar.done == 100


def test_short_work_says_nothing(caplog):
    with progress.Bar(3, "text", "features") as bar:
        bar.update(3)
    assert caplog.messages == [] and bar.what == "features" and progress.Bar(1, "exam").what == "exams"


def test_a_terminal_has_a_bar(monkeypatch, capsys, caplog):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Bar(4, "image", "maps") as bar:
        bar.update(4)
    assert "maps" in capsys.readouterr().err and caplog.messages == []


def test_work_without_measure_says_when_it_began_goes_on_and_ended(caplog):
    with progress.working("compiling the step", every=0.01):
        while len(caplog.messages) < 2:
            pass
    assert caplog.messages[0] == "compiling the step ..." and "not done after" in caplog.messages[1]
    assert caplog.messages[-1].startswith("compiling the step: done in ")
    with pytest.raises(ZeroDivisionError), progress.working("something"):
        raise ZeroDivisionError
    assert caplog.messages[-1] == "something ..."


@pytest.mark.parametrize("seconds, said", [(0.44, "0.4 s"), (9.96, "10 s"), (61, "1:01"), (3723.4, "1:02:03")])
def test_spans(seconds, said):
    assert progress.span(seconds) == said
