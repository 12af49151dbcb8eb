"""A process pool that survives its workers: a decoder that crashes or hangs costs one item, not the job."""

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import cv2

from mammoclip_jax.memory import keep_freed_memory

TIMEOUT = 300.0  # seconds for one item


class WorkerLost(NamedTuple):
    """In place of a result: the worker died or hung on this item."""

    reason: str


def ordered_map(function: Callable, items: Iterable, workers: int, timeout: float = TIMEOUT) -> Iterator[Any]:
    """`map(function, items)` over `workers` processes, in the order of the items, with little read ahead.

    With 0 workers it runs in this process, without protection. `function` and items must be picklable, and on the way a
    `WorkerLost` stands for an item whose worker died or took longer than `timeout` seconds.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    items = iter(items)
    pool = _pool(workers)
    pending: collections.deque[tuple[Any, Future]] = collections.deque()
    try:
        while True:
            for item in itertools.islice(items, 2 * workers + 2 - len(pending)):
                pending.append((item, pool.submit(function, item)))
            if not pending:
                return
            item, future = pending.popleft()
            try:
                result = future.result(timeout)
            except (BrokenProcessPool, FutureTimeout):
                _kill(pool)
                result = _alone(function, item, timeout)
                pool = _pool(workers)
                waiting = [waiting for waiting, _ in pending]
                pending = collections.deque((waiting, pool.submit(function, waiting)) for waiting in waiting)
            yield result
    finally:
        _kill(pool)


def _alone(function: Callable, item: Any, timeout: float) -> Any:
    """The item again in a process of its own: when a pool breaks, any of the items under way may be to blame."""
    pool = _pool(1)
    try:
        return pool.submit(function, item).result(timeout)
    except BrokenProcessPool:
        return WorkerLost("decoder crashed")
    except FutureTimeout:
        return WorkerLost("decoder hung")
    finally:
        _kill(pool)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller may hold threads of jax.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    # The processes are the parallelism; threads of OpenCV in each would only fight.
    cv2.setNumThreads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker holds both ends of its queue and would wait for ever after its parent was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):  # no public way in 3.11 to stop a hung worker
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)
