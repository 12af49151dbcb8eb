"""A part of a device's measurement as a process: its variables, its time limit, what it said and what ended it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

UNKNOWN = "not known"
FULL = "out of memory"
# A trial's figures say nothing, so its programs are compiled fast.
TRIAL_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def part(module: str, name: str, specification: dict, limit: float, variables: dict) -> tuple[list[dict], str]:
    """Runs `python -m module name specification` for at most `limit` seconds.

    Returns:
        The lines of JSON that it said by its end, and what ended it: "" if it was done, else "out of memory", "over N s",
        or the last line of its errors.
    """
    command = [sys.executable, "-m", module, name, json.dumps(specification)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": variables}
    process = subprocess.Popen(command, start_new_session=True, **options)
    ended = None
    try:
        said, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        ended = f"over {limit:.0f} s"
        _kill(process)
        said, errors = process.communicate()
    except BaseException:  # an interrupt: nothing of it stays behind
        _kill(process)
        process.communicate()
        raise
    lines = []
    for line in said.splitlines():
        with contextlib.suppress(ValueError):  # the last may be cut off
            lines.append(json.loads(line))
    return lines, why(process.returncode, errors) if ended is None else ended


def _kill(process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def why(status: int, errors: str) -> str:
    """What ended a process of this exit status, by what it wrote to standard error."""
    if status == 0:
        return ""
    if status == -signal.SIGKILL or any(
        word in errors for word in ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "MemoryError", "bad_alloc")
    ):
        return FULL
    last = ([line.strip() for line in errors.splitlines() if line.strip()] or [f"ended with status {status}"])[-1]
    return f"failed: {last[:160]}"


def environment(small: bool, flags: str = "") -> dict[str, str]:
    """Variables of a part: checks need the CPU beside the accelerator, and a measurement nearly all of its memory."""
    variables = dict(os.environ)
    platforms = variables.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        variables["JAX_PLATFORMS"] = f"{platforms},cpu"
    variables.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    flags = " ".join(filter(None, [variables.get("XLA_FLAGS", ""), TRIAL_FLAGS if small else "", flags]))
    return variables | ({"XLA_FLAGS": flags} if flags else {})


def gpu_facts(command: Sequence[str] = ("nvidia-smi",)) -> dict[str, str]:
    """{driver, power_cap} of the first GPU as nvidia-smi has them, "not known" where there is none."""
    query = ["--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, *query], capture_output=True, text=True, check=True, timeout=20)
        driver, _, power = done.stdout.splitlines()[0].partition(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return {"driver": UNKNOWN, "power_cap": UNKNOWN}
    watts = power.strip().replace(".", "", 1)
    return {"driver": driver.strip(), "power_cap": f"{float(power):.0f} W" if watts.isdigit() else UNKNOWN}
