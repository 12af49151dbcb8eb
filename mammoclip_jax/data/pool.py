"""A process pool that survives its workers: a decoder that crashes or hangs costs one item, not the job; and threads."""

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import cv2

from mammoclip_jax.memory import keep_freed_memory

TIMEOUT = 300.0  # seconds for one item
_PIECE = 256  # items that a thread takes at a time


class WorkerLost(NamedTuple):
    """In place of a result: the worker died or hung on this item."""

    reason: str


def in_threads(function: Callable, items: Sequence, threads: int) -> Iterator[Any]:
    """`map(function, items)` by `threads`, in the order of the items.

    A thread takes a piece of them: an executor keeps two kilobytes for each task, and there may be a million items.
    """
    size = max(1, min(_PIECE, len(items) // (4 * threads)))
    pieces = (items[start : start + size] for start in range(0, len(items), size))
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(lambda piece: list(map(function, piece)), pieces):
            yield from results


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
