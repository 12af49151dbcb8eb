"""A program to be timed, in a process of its own, that takes a step when it is told to.

Each side of a comparison has its own process, and so its own memory, threads and malloc settings. One line of JSON goes
each way: the specification and then a command to the worker's standard input, an answer to its standard output.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mammoclip_jax.benchmarks import load
from mammoclip_jax.benchmarks.resident import Peak, give_back
from mammoclip_jax.errors import UserError

HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"


def serve(make: Callable[[dict], tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]]) -> None:
    """The worker's end. `make(specification) -> (what there is to say of the program, step)`.

    `step()` does one step to its end and returns figures about it, such as its loss. A `UserError` of either is
    passed on. What libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields):
        answers.write(json.dumps(fields, default=str) + "\n")

    try:
        about, step = make(json.loads(sys.stdin.readline()))
        give_back()
        peak = Peak()
        answer(**about)
        for command in map(str.strip, sys.stdin):
            if command == "step":
                others, start = load.Others(), time.perf_counter()
                figures = step()
                seconds = time.perf_counter() - start
                answer(seconds=seconds, others=load.share(seconds, others.seconds()), **figures)
            elif command == "reset":
                peak = Peak()
                answer()
            elif command == "peak":
                answer(bytes=peak.bytes(), since=peak.since)
    except UserError as error:
        answer(error=str(error))


class Worker:
    """The other end: starts `python -m module`, waits until its program is ready, and then commands it.

    Attributes:
        about: what the worker said of its program.
        first: seconds of the first step, in which some libraries compile; None before it.
        seconds: [steps] of all steps since the last reset; `figures` what the steps returned, and "others", the share of
            all cores' time that other processes took (`load.share`; None where that is not known).
    """

    def __init__(self, module: str, specification: Mapping[str, Any], environment: Mapping[str, str] = {}):
        self.module, self.seconds, self.figures, self.first = module, [], [], None
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment),
        )
        self.about = self._ask(json.dumps(specification, default=list))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def step(self) -> float:
        """Seconds of one step, measured in the worker."""
        answer = self._ask("step")
        self.first = self.first or answer["seconds"]
        self.seconds.append(answer["seconds"])
        self.figures.append(answer)
        return answer["seconds"]

    def warm_up(self, steps: int) -> None:
        """`steps` steps that do not count, in time or memory."""
        for _ in range(steps):
            self.step()
        self._ask("reset")
        self.seconds, self.figures = [], []

    def peak(self) -> dict:
        """{"bytes": peak resident memory since the last reset, "since": see `resident.Peak`}."""
        return self._ask("peak")

    def _ask(self, line: str) -> dict:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            status = self._process.wait()
            raise UserError(
                f"the process of {self.module} ended with status {status}; what it said is above "
                "(killed, -9, is most often too little memory)."
            )
        answer = json.loads(reply)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer
