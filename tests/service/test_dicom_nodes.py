"""The service as a DICOM node: studies in by C-STORE, reports out, with another node of pynetdicom."""

import contextlib
import logging
import socket

import numpy as np
import pydicom
import pytest
import tiny_dicom
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import BasicTextSRStorage, Verification
from serving import NAME, NUMBER, change, instance, serving, wait_for
from tiny_dicom import MAMMOGRAPHY

from mammoclip_jax.errors import UserError
from mammoclip_jax.service import listener, sender

NEVER, SOON = 1e6, 0.1  # seconds
LIMIT = 1_000_000  # bytes


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Archive:
    """A node that keeps reports; it answers `status`."""

    def __init__(self):
        self.port, self.got, self.status = free_port(), [], 0

    @contextlib.contextmanager
    def there(self):
        ae = AE("ARCHIVE")
        ae.add_supported_context(BasicTextSRStorage)
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        try:
            yield
        finally:
            server.shutdown()

    def _store(self, event):
        if not self.status:
            self.got.append(event.dataset)
        return self.status


def store(port, *paths, title="SCANNER", called="MAMMOCLIP", echo=False):
    """Statuses of C-STORE of files (of C-ECHO first), None where there is no association."""
    ae = AE(title)
    for kind in (MAMMOGRAPHY, SecondaryCaptureImageStorage, Verification):
        ae.add_requested_context(kind, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return None
    statuses = [association.send_c_echo().Status] if echo else []
    statuses += [association.send_c_store(pydicom.dcmread(path)).get("Status") for path in paths]
    association.release()
    return statuses


@pytest.fixture(scope="module")
def archive():
    return Archive()


@pytest.fixture(scope="module")
def node(tmp_path_factory, archive):
    """(service, its DICOM port)."""
    port = free_port()
    with serving(
        tmp_path_factory.mktemp("node"),
        dicom_port=port,
        quiet=NEVER,
        limit=LIMIT,
        send_to=sender.Destination("ARCHIVE", "127.0.0.1", archive.port),
        peers=("SCANNER@127.0.0.1", "OTHER@10.9.8.7"),
    ) as (own, _):
        yield own, port


def test_a_study_comes_in_and_its_report_goes_out(node, archive, tmp_path, monkeypatch, caplog):
    own, port = node
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sender, "LONGEST_WAIT", 0.3)
    study = generate_uid()
    paths = [instance(tmp_path, study) for _ in range(3)]
    assert store(port, *paths[:2], echo=True) == [0, 0, 0]
    assert store(port, paths[2], paths[0]) == [0, 0]  # another association; one came before
    (folder,) = (own.spool.root / "open").iterdir()
    assert len(list((folder / "files").iterdir())) == 3
    change(own, quiet=SOON)
    wait_for(lambda: own.spool.counts()["done"])  # nobody is there to take the report
    wait_for(lambda: own.spool.to_send() and own.spool.to_send().sends)
    archive.status = 0xA700
    with archive.there():
        tries = own.spool.find(folder.name)[1].sends
        wait_for(lambda: own.spool.find(folder.name)[1].sends > tries)  # it has no room
        archive.status = 0
        wait_for(lambda: own.spool.counts()["sent"])
        (report,) = archive.got
        assert report.StudyInstanceUID == study and report.Modality == "SR"
        # An instance that comes later makes a new version, of all of them.
        assert store(port, instance(tmp_path, study)) == [0]
        wait_for(lambda: own.spool.counts()["sent"] == 2)
        assert len(archive.got) == 2 and archive.got[1].SOPInstanceUID != report.SOPInstanceUID
        second = own.spool.find(folder.name.replace("-1", "-2"))[1]
        assert second.version == 2 and len(list((own.spool.root / "sent" / second.id / "files").iterdir())) == 4
    assert not any(word in caplog.text for word in (NAME, NUMBER, study, "JANE"))


def test_who_may_not_send_and_what_is_no_study_is_refused(node, tmp_path):
    own, port = node
    path = instance(tmp_path, generate_uid())
    before = own.spool.counts()
    assert store(port, path, title="STRANGER") is None and store(port, path, called="ANOTHER") is None
    assert store(port, path, title="OTHER") == [listener.NOT_AUTHORIZED]  # from another address
    header = pydicom.dcmread(path)
    del header.StudyInstanceUID
    header.save_as(tmp_path / "none.dcm")
    assert store(port, tmp_path / "none.dcm") == [listener.NOT_UNDERSTOOD]
    own.spool.reserve = 2**62
    assert store(port, path) == [listener.NO_RESOURCES]
    own.spool.reserve = 0
    assert own.spool.counts() == before and not list(own.spool.root.glob("arriving/*"))
    text = own.metrics.text().decode()
    assert all(
        f'mammoclip_dicom_instances_total{{outcome="{outcome}"}} 1.0' in text
        for outcome in ("no room", "not authorized", "not understood")
    )


def test_a_report_that_nobody_takes_is_given_up_and_said(tmp_path):
    port = free_port()
    with serving(
        tmp_path,
        dicom_port=port,
        quiet=SOON,
        retries=0,
        send_to=sender.Destination("ARCHIVE", "127.0.0.1", free_port()),
    ) as (own, _):
        assert store(port, instance(tmp_path, generate_uid()), title="ANYBODY") == [0]
        wait_for(lambda: own.spool.counts()["failed"])
        (folder,) = (own.spool.root / "failed").iterdir()
        assert "could not be sent: no connection" in own.spool.find(folder.name)[1].reason
        assert own.spool.results(folder.name)


def test_destinations_and_waits():
    assert sender.destination("ARCHIVE@10.0.0.5:104") == ("ARCHIVE", "10.0.0.5", 104)
    assert sender.destination("A@[::1]:104").host == "::1"
    for wrong in ("", "ARCHIVE", "ARCHIVE@host", "@host:104", "ARCHIVE@:104", "A" * 17 + "@host:104"):
        with pytest.raises(UserError, match="TITLE@HOST:PORT"):
            sender.destination(wrong)
    assert [sender.wait_after(failures) for failures in (1, 2, 3, 50)] == [2, 4, 8, 600]


def test_an_instance_above_the_limit_is_refused_and_not_kept(node, tmp_path):
    own, port = node
    study = generate_uid()
    large = tiny_dicom.write(
        tmp_path / "large.dcm", np.zeros((800, 800), np.uint16), StudyInstanceUID=study, SOPInstanceUID=generate_uid()
    )
    before = sorted((own.spool.root / "open").iterdir())
    assert store(port, large) == [listener.NOT_UNDERSTOOD]
    assert sorted((own.spool.root / "open").iterdir()) == before
    assert 'mammoclip_dicom_instances_total{outcome="too large"} 1.0' in own.metrics.text().decode()
