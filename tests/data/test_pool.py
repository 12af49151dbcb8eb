import os
import subprocess
import sys
import time

import pytest

from mammoclip_jax.data.pool import WorkerLost, ordered_map


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def dies_on_three(number: int) -> int:
    if number == 3:
        os._exit(11)
    return number


def hangs_on_one(number: int) -> int:
    if number == 1:
        time.sleep(60)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    assert list(ordered_map(square, range(12), workers)) == [n * n for n in range(12)]


def test_a_dying_worker_costs_one_item():
    expected = [0, 1, 2, WorkerLost("decoder crashed"), 4, 5, 6]
    assert list(ordered_map(dies_on_three, range(7), 2)) == expected


@pytest.mark.slow
def test_a_hanging_worker_costs_one_item():
    assert list(ordered_map(hangs_on_one, range(3), 2, timeout=8.0)) == [0, WorkerLost("decoder hung"), 2]


def test_workers_end_with_their_killed_parent(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = [{os.getcwd()!r}, {os.path.dirname(__file__)!r}]\n"
        "from mammoclip_jax.data.pool import ordered_map\n"
        "def report(number):\n"
        "    import os\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in ordered_map(report, range(10**6), 2):\n"
        "        print(pid, flush=True); time.sleep(0.05)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = {int(process.stdout.readline()) for _ in range(6)}
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Running, and not a zombie that nobody collects in a container."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
