"""Growth is measured of every work, on tables of a few rows; no figure is judged here."""

import json
import subprocess

import pytest

from mammoclip_jax.benchmarks import growth
from mammoclip_jax.errors import UserError


@pytest.mark.parametrize("work", growth.WORKS)
def test_every_work_gives_its_figures(work):
    figures = growth.measure(work, 500)
    assert figures["items"] == 500 // growth.WORKS[work][1]
    assert min(figures["seconds"], figures["cpu_seconds"], figures["peak_gib"]) >= 0
    of_readers = (figures["bytes"], figures["readers_cpu_seconds"])
    assert all(value and value > 0 for value in of_readers) if work == "readers" else of_readers == (None, None)


def test_each_size_is_a_process_of_its_own_with_the_exponent_since_the_one_before(monkeypatch):
    def run(command, **options):
        assert command[1:3] == ["-m", growth.__name__]
        return subprocess.CompletedProcess(
            command, 0, f"a line\n{json.dumps(growth.measure(command[3], int(command[4])))}"
        )

    monkeypatch.setattr(subprocess, "run", run)
    rows = growth.run([100, 200], ["labelled exams"])
    assert [(row["work"], row["images"], row["items"]) for row in rows] == [
        ("labelled exams", n, n) for n in (100, 200)
    ]
    assert rows[0]["exponent"] is None and isinstance(rows[1]["exponent"], float)


def test_the_exponent_is_of_the_time():
    rows = [{"items": 100, "cpu_seconds": 2.0}, {"items": 400, "cpu_seconds": 32.0}]
    assert growth._exponent(*rows) == pytest.approx(2)


def test_the_table_is_of_whole_exams_and_patients_in_one_split():
    table = growth.index(400)
    assert table["image"].is_unique and (table.groupby("study").size() == 4).all()
    assert (table.groupby("patient")["split"].nunique() == 1).all() and set(table["split"]) == {"train", "val", "test"}
    assert table.equals(growth.index(400))


@pytest.mark.parametrize(
    "sizes, works, message",
    [([500], [], "two or more"), ([500, 200], [], "ascending"), ([100, 200], ["breast"], "Did you mean 'breasts'")],
)
def test_wrong_input_is_said(sizes, works, message):
    with pytest.raises(UserError, match=message):
        growth.run(sizes, works)
