"""DICOM in: what is received by C-STORE is on the disk before it is acknowledged."""

from collections.abc import Callable, Sequence

import pydicom
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification

from mammoclip_jax.errors import UserError
from mammoclip_jax.service.spool import Full, NoRoom, Spool

# Answers to C-STORE, PS3.4 B.2.3 and PS3.7 C.
SUCCESS, NO_RESOURCES, NOT_AUTHORIZED, NOT_UNDERSTOOD = 0x0000, 0xA700, 0x0124, 0xC000
_OUTCOMES = {NO_RESOURCES: "no room", NOT_AUTHORIZED: "not authorized", NOT_UNDERSTOOD: "not understood"}


class Listener:
    """A storage SCP whose instances go into a spool.

    Args:
        address: host and port.
        title: its AE title, which callers must use.
        peers: who may send, "TITLE" or "TITLE@ADDRESS"; none: everybody.
        limit: bytes that an instance may have.
        told: called with the outcome of each instance.
    """

    def __init__(
        self,
        spool: Spool,
        address: tuple[str, int],
        title: str,
        peers: Sequence[str],
        limit: int,
        told: Callable[[str], None],
    ):
        self._spool, self._peers, self._told = spool, [tuple(peer.split("@", 1)) for peer in peers], told
        self._limit = limit
        _config.STORE_RECV_CHUNKED_DATASET = True  # into a file of `tempfile`, which `server` lays into the spool
        ae = AE(title)
        ae.require_called_aet = True
        ae.require_calling_aet = sorted({peer[0] for peer in self._peers})
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        try:
            self._server = ae.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        except OSError as error:
            raise UserError(
                f"--dicom_port={address[1]}: {error.strerror}. Is another service there? Name another port."
            ) from error

    def stop(self) -> None:
        """Takes no more; what is being sent at the moment is not acknowledged."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _store(self, event) -> int:
        status, outcome = SUCCESS, ""
        try:
            requestor = event.assoc.requestor
            if self._peers and not {(requestor.ae_title,), (requestor.ae_title, requestor.address)} & {*self._peers}:
                status = NOT_AUTHORIZED
            elif event.dataset_path.stat().st_size > self._limit:
                status, outcome = NOT_UNDERSTOOD, "too large"  # a sender would try again after "no resources"
            else:
                study = _study(event.dataset_path)
                _, new = self._spool.add_instance(event.dataset_path, study, str(event.request.AffectedSOPInstanceUID))
                outcome = "new" if new else "known"
        except (Full, NoRoom, OSError):  # the sender tries again
            status = NO_RESOURCES
        except (ValueError, AttributeError, InvalidDicomError):
            status = NOT_UNDERSTOOD
        self._told(outcome or _OUTCOMES[status])
        return status


def _study(path) -> str:
    """Study Instance UID of a file.

    Raises:
        ValueError: it has none.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    study = str(header.get("StudyInstanceUID") or "")
    if not study:
        raise ValueError("no study")
    return study
