"""Requests to stop: a scheduler's SIGTERM or a person's Ctrl-C, followed by all processes at the same step."""

import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np

from mammoclip_jax.training.mesh import batch_sharding, replicated


class Stopped(Exception):
    """The run was asked to stop (SIGTERM or SIGINT); it has saved and goes on with the same workdir."""


class StopRequest:
    """A context that notes SIGTERM and SIGINT, for the loop to stop at the end of its step; a second SIGINT interrupts.

    Where the process was started with SIGINT ignored (nohup, a script's background job), it stays ignored: Ctrl-C in that
    terminal is meant for another program.

    With several processes one that is asked asks all: what each knows is put together on the devices after a step, and
    read after the next one, so that no process waits for it and all read the same.
    """

    def __init__(self, mesh):
        self._mesh, self._asked = mesh, None
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self.requested = False

    def agreed(self) -> bool:
        """Whether to stop after this step. Every process calls it once a step, and gets the same answer."""
        if jax.process_count() == 1:
            return self.requested
        before = self._asked
        own = np.full(jax.local_device_count(), self.requested)
        self._asked = self._any(jax.make_array_from_process_local_data(batch_sharding(self._mesh), own))
        return before is not None and bool(before)

    def __enter__(self):
        numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logging.warning("asked to stop: finishing the step, then saving")

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
