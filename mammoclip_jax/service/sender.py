"""DICOM out: an exam's report to one destination, by C-STORE."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pydicom
from pynetdicom import AE

from mammoclip_jax.errors import UserError

LONGEST_WAIT = 600.0  # seconds between tries
TIMEOUT = 30.0  # seconds that the destination may take to answer


class NotSent(Exception):
    """The destination did not take it; the text says why, and names nobody."""


class Destination(NamedTuple):
    """Where reports go."""

    title: str
    host: str
    port: int


def destination(text: str) -> Destination:
    """Reads "TITLE@HOST:PORT".

    Raises:
        UserError: it is written otherwise.
    """
    title, _, address = text.rpartition("@")
    host, _, port = address.rpartition(":")
    if not (0 < len(title) <= 16 and host and port.isdigit()):
        raise UserError(f"--send_to={text}: write TITLE@HOST:PORT, such as ARCHIVE@10.0.0.5:104.")
    return Destination(title, host.strip("[]"), int(port))


def wait_after(failures: int) -> float:
    """Seconds to wait after so many failures: 2, 4, 8, ... up to LONGEST_WAIT."""
    return min(2.0**failures, LONGEST_WAIT)


def send(paths: Sequence[Path], to: Destination, title: str) -> None:
    """Sends DICOM files in one association; those that the destination has already, it takes again.

    Raises:
        NotSent: no connection, or one of them was not taken.
    """
    sets = [pydicom.dcmread(path) for path in paths]
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = TIMEOUT
    for dataset in sets:
        ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate(to.host, to.port, ae_title=to.title)
    if not association.is_established:
        raise NotSent("no connection, or it was rejected")
    try:
        for dataset in sets:
            status = association.send_c_store(dataset).get("Status")
            if status is None or status != 0 and status >> 12 != 0xB:  # a warning: it is stored
                raise NotSent("no answer" if status is None else f"refused with status 0x{status:04X}")
    except (ValueError, RuntimeError) as error:
        raise NotSent("the destination does not take reports of this kind, or hung up") from error
    finally:
        if association.is_established:
            association.release()
