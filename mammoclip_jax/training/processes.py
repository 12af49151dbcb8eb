"""Where the processes of a job wait for each other on the host."""

import jax
import orbax.checkpoint as ocp

from mammoclip_jax.errors import UserError

LONGEST = 7 * 24 * 3600  # seconds that a process waits for what another does alone


def barrier(name: str) -> None:
    """Waits until all processes are here; through the coordinator, since what devices do together may time out.

    Gloo gives processes half a minute to come to the first collective of a group of devices.

    Raises:
        UserError: another process has ended.
    """
    if jax.process_count() == 1:
        return
    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=LONGEST * 1000)
    except RuntimeError as error:
        raise UserError(
            f"another process of this job ended while this one waited ({name}): see its log. "
            f"{str(error).splitlines()[0]}"
        ) from error
