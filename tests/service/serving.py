"""A service in this process, with the model of `fake_scoring`, and how to speak with it."""

import contextlib
import dataclasses
import http.client
import json
import queue
import threading
import time
import urllib.parse

import fake_scoring
import numpy as np
import tiny_dicom
from pydicom.uid import generate_uid

from mammoclip_jax.service.server import Options, Service

NAME, NUMBER = "ROE^JANE", "4711-PATIENT"


def instance(folder, study, said="", name=NAME):
    """Writes a file of a study; its path."""
    uid = generate_uid()
    return tiny_dicom.write(
        folder / f"{uid}.dcm",
        np.zeros((8, 8), np.uint16),
        StudyInstanceUID=study,
        SOPInstanceUID=uid,
        StudyDescription=said,
        PatientName=name,
        PatientID=NUMBER,
    )


@contextlib.contextmanager
def serving(folder, arguments=(), ready=True, **options):
    """(service, its address) of a service that runs while the block does."""
    service = Service(Options(**{"spool": folder / "spool", "port": 0} | options), fake_scoring.make, arguments)
    started, failed = queue.Queue(), []

    def run():
        try:
            service.run(started.put)
        except Exception as error:  # noqa: BLE001  the test shall see it
            failed.append(error)
            started.put("")

    thread = threading.Thread(target=run)
    thread.start()
    address = started.get(timeout=300)
    try:
        if not failed:
            wait_for(lambda: service.ready or not ready)
            yield service, address
    finally:
        if not failed:
            service.stop()
        thread.join()
    if failed:
        raise failed[0]


def change(service, **values):
    """Other options, for what it does from now on."""
    service.options = dataclasses.replace(service.options, **values)


def wait_for(true, seconds=300):
    """What `true()` returns, once that is not false."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)
    return found


def ask(address, method, path, body=b"", **headers):
    """(status, headers, body; of JSON what it says) of an answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=300)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.headers.get("content-type") == "application/json":
        content = json.loads(content)
    return answer.status, answer.headers, content


def form(*files):
    """Body and type of multipart/form-data with (name, bytes) of each file."""
    boundary = "a-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def upload(address, *paths, **headers):
    """Answer to the upload of files."""
    body, kind = form(*((path.name, path.read_bytes()) for path in paths))
    return ask(address, "POST", "/exams", body, content_type=kind, **headers)


def finished(address, id, **headers):
    """What is said of an exam once it is finished."""

    def look():
        _, _, said = ask(address, "GET", f"/exams/{id}", **headers)
        return said if said["state"] in ("done", "sent", "failed") else None

    return wait_for(look)
