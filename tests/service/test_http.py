"""The service over HTTP, on loopback, with a model of a few lines."""

import io
import logging
import os
import zipfile

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from serving import NAME, NUMBER, ask, change, finished, form, instance, serving, upload, wait_for

from mammoclip_jax.errors import UserError
from mammoclip_jax.service import spool, uploads
from mammoclip_jax.service.server import Options, Service

TOKEN = "a token of tests"
LIMIT = 200_000  # bytes


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service"), limit=LIMIT) as (own, address):
        yield own, address


@pytest.fixture(scope="module")
def address(service):
    return service[1]


def archive(*entries, kind=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as file:
        for name, content in entries:
            file.writestr(name, content)
    return made.getvalue()


def post(address, body, kind="application/zip"):
    status, headers, said = ask(address, "POST", "/exams", body, content_type=kind)
    return status, headers, said


def test_an_exam_is_taken_scored_and_given_back(service, tmp_path, caplog):
    own, address = service
    caplog.set_level(logging.INFO)
    study = generate_uid()
    paths = [instance(tmp_path, study), instance(tmp_path, study)]
    status, headers, said = upload(address, *paths)
    assert status == 202 and headers["location"] == f"/exams/{said['id']}" and said["state"] == "received"
    assert said["files"] == {"0001.dcm": paths[0].name, "0002.dcm": paths[1].name}
    done = finished(address, said["id"])
    assert done["state"] == "done" and done["result"]["exams"][0]["views"] == 2 and done["seconds"] >= 0
    status, headers, report = ask(address, "GET", done["reports"][0])
    assert status == 200 and headers["content-type"] == "application/dicom"
    assert dcmread(io.BytesIO(report)).StudyInstanceUID == study
    status, headers, page = ask(address, "GET", f"/exams/{said['id']}/exam.html")
    assert page == b"<p>mass</p>" and "default-src 'none'" in headers["content-security-policy"]
    for other in ("report.dcm?exam=1", "report.dcm?exam=x", "result.json", "..%2fexam.json", "%2e%2e"):
        assert ask(address, "GET", f"/exams/{said['id']}/{other}")[0] == 404
    status, _, again = upload(address, *reversed(paths))  # the same files are the same exam
    assert status == 200 and again["id"] == said["id"] and again["state"] == "done"
    assert ask(address, "DELETE", f"/exams/{said['id']}")[0] == 204
    assert ask(address, "GET", f"/exams/{said['id']}")[0] == 404 == ask(address, "DELETE", f"/exams/{said['id']}")[0]
    _, _, metrics = ask(address, "GET", "/metrics")
    text = metrics.decode()
    assert 'mammoclip_exams_received_total{source="http"}' in text and "mammoclip_scoring_seconds_bucket" in text
    assert "model_process_resident_memory_bytes" in text or not os.path.exists("/proc")
    everything = text + caplog.text
    assert "scored in" in caplog.text
    assert not any(word in everything for word in (NAME, NUMBER, study, "JANE", paths[0].name))


def test_a_bad_file_is_a_problem_of_its_exam(address, tmp_path):
    good = instance(tmp_path, generate_uid())
    body, kind = form((good.name, good.read_bytes()), ("notes.dcm", b"not an image"))
    said = finished(address, post(address, body, kind)[2]["id"])
    assert said["state"] == "done" and said["result"]["problems"][0]["file"] == "0002.dcm"
    body, kind = form(("notes.dcm", b"not an image either"))
    said = finished(address, post(address, body, kind)[2]["id"])
    assert said["state"] == "failed" and said["reason"] == "the exam holds no files to score."
    assert ask(address, "GET", f"/exams/{said['id']}/report.dcm")[0] == 422


def test_an_error_says_its_kind_and_place_and_nobodys_name(address, tmp_path):
    said = finished(address, upload(address, instance(tmp_path, generate_uid(), "wrong"))[2]["id"])
    assert said["reason"].startswith("ValueError at fake_scoring.py:") and NAME not in str(said)


def test_the_time_limit_ends_an_exam_and_the_next_is_scored(service, tmp_path):
    own, address = service
    change(own, seconds=1.0)
    slow = upload(address, instance(tmp_path, generate_uid(), "slow"))[2]["id"]
    wait_for(lambda: own.spool.find(slow)[0] == "scoring")
    status, headers, _ = ask(address, "GET", f"/exams/{slow}/report.dcm")
    assert status == 409 and headers["retry-after"]
    assert ask(address, "DELETE", f"/exams/{slow}")[0] == 409
    said = finished(address, slow)
    change(own, seconds=300.0)
    quick = upload(address, instance(tmp_path, generate_uid()))[2]["id"]
    assert said["timed_out"] and "longer than the 1 s" in said["reason"]
    assert ask(address, "GET", f"/exams/{slow}/report.dcm")[0] == 504
    assert finished(address, quick)["state"] == "done"


def test_an_exam_that_ends_the_process_is_given_up(address, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "ATTEMPTS", 2)
    path = instance(tmp_path, generate_uid(), "ends")
    bad, good = upload(address, path)[2]["id"], upload(address, instance(tmp_path, generate_uid()))[2]["id"]
    assert "ended the process 2 times" in finished(address, bad)["reason"]
    assert finished(address, good)["state"] == "done"


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"", "application/dicom", 400),
        (b"no archive", "application/zip", 400),
        (b"GIF", "image/gif", 415),
        (b"x", "", 415),
        (archive(), "application/zip", 400),
        (archive(("../outside.dcm", b"x")), "application/zip", 400),
        (archive(("/etc/outside.dcm", b"x")), "application/zip", 400),
        (archive(("a\\..\\..\\outside.dcm", b"x")), "application/zip", 400),
        (archive(("C:\\outside.dcm", b"x")), "application/zip", 400),
        (archive(("a.dcm", b"x"), kind=zipfile.ZIP_LZMA), "application/zip", 400),
        (archive(("a.dcm", b"x" * 99))[:-10], "application/zip", 400),
        (archive(("a.dcm", os.urandom(999))).replace(b"PK\x01\x02", b"PK\x01\x03"), "application/zip", 400),
        (archive(("bomb.dcm", bytes(LIMIT + 1))), "application/zip", 413),
        (archive(*((f"{number}.dcm", bytes(LIMIT // 2)) for number in range(3))), "application/zip", 413),
        (archive(*((str(number), b"") for number in range(uploads.MAX_FILES + 1))), "application/zip", 413),
        (bytes(LIMIT + 1), "application/dicom", 413),
        (bytes(LIMIT + 2 * 2**20), "application/dicom", 413),  # before it was read
    ],
)
def test_what_is_no_exam_is_refused(service, body, kind, status):
    own, address = service
    before = own.spool.counts()
    given, _, said = post(address, body, kind)
    assert given == status
    assert own.spool.counts() == before and not list(own.spool.root.glob("arriving/*"))


def test_an_archive_that_lies_about_sizes_is_refused(address):
    bomb = archive(("a.dcm", bytes(LIMIT + 1)))
    lying = bomb.replace((LIMIT + 1).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != bomb and post(address, lying)[0] in (400, 413)
    directory = bytearray(archive(("a.dcm", b"x")))
    directory[-10:-6] = (2**30).to_bytes(4, "little")
    assert post(address, bytes(directory))[0] == 413
    end = archive(("a.dcm", b"x"))
    assert post(address, end[:-22] + b"PK\x06\x07" + bytes(16) + end[-22:])[0] == 413  # ZIP64


def test_archives_are_unpacked_under_names_of_their_own(address, tmp_path):
    study = generate_uid()
    paths = [instance(tmp_path, study) for _ in range(3)]
    entries = [(f"{NAME}/{path.name}", path.read_bytes()) for path in paths]
    body = archive((f"{NAME}/", b""), *entries, ("readme.txt", b"hello"))
    _, _, said = post(address, body)
    assert [*said["files"]] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004"]
    assert finished(address, said["id"])["result"]["exams"][0]["views"] == 3


def test_other_hosts_and_other_sites_are_refused(address, tmp_path):
    body, kind = form(("a.dcm", b"x"))
    assert ask(address, "GET", "/health", host="example.com")[0] == 400
    assert ask(address, "POST", "/exams", body, content_type=kind, origin="http://example.com")[0] == 403
    assert ask(address, "POST", "/exams", body, content_type=kind, origin="null")[0] == 403
    assert ask(address, "GET", "/health", origin=address)[0] == 200
    for path in ("/exams/..%2f..%2fkey", "/exams/key", "/exams/../key", f"/exams/{'0' * 32}", "/docs"):
        assert ask(address, "GET", path)[0] == 404
    assert ask(address, "GET", "/exams")[0] == 405


def test_a_token_a_full_queue_a_full_disk_and_a_stop(tmp_path):
    studies = [instance(tmp_path, generate_uid()) for _ in range(3)]
    right = {"authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path, (1000.0,), ready=False, token=TOKEN, queue=2, grace=0.0) as (own, address):
        status, headers, _ = upload(address, studies[0], **right)
        assert status == 503 and headers["retry-after"]  # the model is being loaded
        assert ask(address, "GET", "/health/live")[0] == 200
        assert ask(address, "GET", "/health/ready")[0] == 503 == ask(address, "GET", "/health")[0]
        wait_for(lambda: ask(address, "GET", "/health/ready")[0] == 200)
        for path in ("/metrics", f"/exams/{'0' * 32}"):  # only health is for all
            assert ask(address, "GET", path)[0] == 401
            assert ask(address, "GET", path, authorization="Bearer a token of test")[0] == 401
            assert ask(address, "GET", path, **right)[0] in (200, 404)
        status, headers, _ = upload(address, studies[0])
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        answers = [upload(address, path, **right) for path in studies]
        assert [status for status, _, _ in answers] == [202, 202, 429] and answers[2][1]["retry-after"]
        own.spool.bound, own.spool.reserve = 3, 2**62
        assert upload(address, studies[2], **right)[0] == 507
        own.spool.reserve = 0
        assert upload(address, studies[2], **right)[0] == 202
        wait_for(lambda: own.spool.counts()["scoring"])
    # The stop put back what was being scored.
    assert own.spool.counts() == dict.fromkeys(own.spool.counts(), 0) | {"received": 3}
    assert own.spool.take(0).attempts == 1


def test_without_a_model_it_ends_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="no such weights"):
        with serving(tmp_path, (0.0, "no such weights"), ready=False) as (own, _):
            wait_for(own._stop.is_set)


def test_a_spool_is_for_one_service_and_a_port_too(service, tmp_path):
    own, address = service
    port = int(address.rpartition(":")[2])
    with pytest.raises(UserError, match="is serving"):
        Service(Options(own.options.spool, port=0), None).run()
    with pytest.raises(UserError, match=f"--port={port}: Address already in use"):
        Service(Options(tmp_path / "other", port=port), None).run()


def test_the_network_needs_a_token_and_peers(tmp_path):
    with pytest.raises(UserError, match="--token_file"):
        Service(Options(tmp_path, host="0.0.0.0"), None)
    with pytest.raises(UserError, match="--peers"):
        Service(Options(tmp_path, host="0.0.0.0", token=TOKEN, dicom_port=104), None)
