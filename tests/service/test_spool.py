"""The spool: states, versions, copies, bounds, and a start after a process that ended anywhere."""

import os

import pytest

from mammoclip_jax.service.spool import ATTEMPTS, STATES, Full, NoRoom, Spool


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", 8)


def put(spool, content=b"file"):
    """An upload of one file."""
    with spool.arrival() as folder:
        (folder / "files" / "0001.dcm").write_bytes(content)
        return spool.add_upload(folder)


def came(spool, study, instance, content=b"file"):
    """An instance by DICOM."""
    path = spool.root / "arriving" / "came"
    path.write_bytes(content)
    return spool.add_instance(path, study, instance)


def scored(spool, record):
    with spool.arrival() as folder:
        (folder / "result").mkdir()
        (folder / "result" / "result.json").write_text("{}")
        return spool.finish(record, folder / "result", 1.0)


def state(spool, record):
    return spool.find(record.id)[0]


def files(spool, record):
    return len(list((spool.root / state(spool, record) / record.id / "files").iterdir()))


def test_an_upload_goes_its_way(spool):
    first, _, new = put(spool)
    second = put(spool, b"other")[0]
    assert new and len(first.id) == 32 and first.id != second.id
    assert not put(spool)[2] and spool.counts()["received"] == 2
    taken = spool.take(0)
    assert taken.id == first.id and state(spool, first) == "scoring" and taken.attempts == 1
    assert [path.read_bytes() for path in spool.files(taken).iterdir()] == [b"file"]
    assert not spool.delete(first.id)
    scored(spool, taken)
    assert spool.results(first.id).name == "result" and spool.find(first.id)[1].seconds == 1
    assert not list((spool.root / "arriving").iterdir())
    spool.fail(spool.take(0).id, "so it is")
    assert spool.find(second.id)[1].reason == "so it is" and spool.take(0) is None
    assert put(spool, b"other")[1:] == ("received", False)  # once more, it is tried again
    assert spool.take(0).attempts == 1
    assert spool.delete(first.id) and not spool.find(first.id)
    assert spool.find("../key") is None and spool.find("key") is None


def test_a_study_is_open_until_it_is_quiet_and_copies_change_nothing(spool):
    record, new = came(spool, "1.2", "1.2.1")
    assert new and came(spool, "1.2", "1.2.2")[1] and not came(spool, "1.2", "1.2.1", b"again")[1]
    assert state(spool, record) == "open" and files(spool, record) == 2 and not spool.close_quiet(60)
    assert [closed.id for closed in spool.close_quiet(0)] == [record.id]
    assert came(spool, "1.2", "1.2.3")[0].id == record.id and state(spool, record) == "open"  # nobody looked at it yet
    spool.close_quiet(0)
    taken = spool.take(0)
    later, new = came(spool, "1.2", "1.2.4")
    assert new and later.version == 2 and later.id == record.id.replace("-1", "-2")
    assert not came(spool, "1.2", "1.2.1")[1] and files(spool, later) == 4 and files(spool, record) == 3
    scored(spool, taken)
    spool.close_quiet(0)
    spool.fail(spool.take(0).id, "so it is")
    assert came(spool, "1.2", "1.2.5")[0].version == 3 and came(spool, "1.3", "1.2.1")[0].version == 1
    spool.close_quiet(0)
    spool.fail(spool.take(0).id, "so it is")
    assert not came(spool, "1.2", "1.2.5")[1] and spool.counts()["received"] == 2  # sent again, it is tried again


def test_no_name_says_whose_it_is(spool):
    came(spool, "1.2.826.0.1", "1.2.826.0.2")
    names = " ".join(str(path) for path in spool.root.rglob("*"))
    assert "1.2.826" not in names
    assert Spool(spool.root.parent / "other", 1).hashed("study", "1.2.826.0.1") != spool.hashed("study", "1.2.826.0.1")
    assert (spool.root.stat().st_mode & 0o777) == 0o700 and ((spool.root / "key").stat().st_mode & 0o777) == 0o600
    for name in STATES:
        assert (spool.root / name).stat().st_mode & 0o077 == 0


def test_a_bound_and_a_full_disk(spool):
    spool.bound = 2
    record = came(spool, "1.2", "1.2.1")[0]
    put(spool)
    with pytest.raises(Full):
        put(spool, b"other")
    with pytest.raises(Full):
        came(spool, "1.3", "1.3.1")
    assert came(spool, "1.2", "1.2.2")[0].id == record.id  # its study is open
    spool.take(0)
    with pytest.raises(Full):
        spool.check()
    spool.bound, spool.reserve = 3, 2**62
    with pytest.raises(NoRoom):
        put(spool, b"other")


def test_a_start_goes_on_where_a_process_ended(spool):
    record, opened = put(spool)[0], came(spool, "1.2", "1.2.1")[0]
    for attempt in range(1, ATTEMPTS + 1):
        assert spool.take(0).attempts == attempt
        (spool.root / "arriving" / "half").write_text("half")
        spool = Spool(spool.root, 8)
        assert not list((spool.root / "arriving").iterdir()) and state(spool, opened) == "open"
    assert "ended the process" in spool.find(record.id)[1].reason
    spool.close_quiet(0)
    taken = spool.take(0)
    spool.put_back(taken)
    assert spool.take(0).attempts == 1


def test_reports_wait_to_be_sent_and_then_go(spool):
    came(spool, "1.2", "1.2.1")
    put(spool)
    spool.close_quiet(0)
    for _ in range(2):
        scored(spool, spool.take(0))
    record = spool.to_send()
    assert "-" in record.id  # an upload is fetched
    spool.not_sent(record, 60)
    assert spool.to_send() is None and spool.find(record.id)[1].sends == 1
    spool.not_sent(record, 0)
    assert spool.expire(0, unsent=True) == 1 and state(spool, record) == "done"
    spool.sent(spool.to_send())
    assert state(spool, record) == "sent" and spool.expire(3600, unsent=True) == 0
    assert spool.expire(0, unsent=True) == 1 and not spool.find(record.id)


def test_what_came_is_on_the_disk_before_it_counts(spool, monkeypatch):
    """Every file and folder of an exam was synchronised after its last change, when it is acknowledged."""
    clean = set()

    def fsync(descriptor):
        clean.add(os.fstat(descriptor).st_ino)

    def renamed(real):
        def rename(before, after):
            real(before, after)
            clean.difference_update(os.stat(os.path.dirname(path)).st_ino for path in (before, after))

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renamed(getattr(os, name)))
    for number in range(2):
        record, _ = came(spool, "1.2", f"1.2.{number}")
        folder = spool.root / "open" / record.id
        for path in (folder, folder / "files", folder.parent, *folder.glob("*.json"), *folder.glob("files/*")):
            assert path.stat().st_ino in clean, path.name
    with spool.arrival() as arrived:
        (arrived / "files" / "0001.dcm").write_bytes(b"file")  # `uploads` synchronises it
        folder = spool.root / "received" / spool.add_upload(arrived)[0].id
    for path in (folder, folder / "files", folder.parent, folder / "exam.json"):
        assert path.stat().st_ino in clean, path.name


def test_an_exam_that_a_full_disk_kept_from_being_finished_waits_again(spool):
    record = put(spool)[0]
    assert [spool.take(0).attempts for _ in range(ATTEMPTS)] == [1, 2, 3] and spool.take(0) is None
    assert state(spool, record) == "failed"
