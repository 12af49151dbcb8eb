"""What the service takes in and gives back: exams a second, latencies, and memory over many exams.

The service is a process of its own on loopback, with a very small classifier of random weights: what is measured is all
that is not the model. A bounded loop sends exams: the next one when an earlier one has been scored. They are one drawn
exam (four files of 160x128), each time under UIDs of its own.
"""

import http.client
import io
import json
import logging
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from mammoclip_jax.errors import UserError

AT_A_TIME = 4  # exams that wait or are scored
EVERY = 100  # exams a row
LOOK_EVERY = 0.05  # seconds between two looks whether an exam is done
HEIGHT, WIDTH = 64, 48  # of the model's canvas
_OPTIONS = {"prompts": "", "method": "", "stage": "", "overlay_size": 128, "every_view": False}


def run(exams: int) -> list[dict]:
    """A row for each hundred exams: exams that were scored so far; of that hundred exams_per_second, seconds from sending
    to scores (p50, p95), CPU seconds an exam of the server's and the model's process; and their resident MiB after it.

    Raises:
        UserError: the service did not start, or an exam was not scored.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = _drawn(Path(scratch))
        command = [sys.executable, "-m", "mammoclip_jax.benchmarks.service", str(Path(scratch, "spool"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                if not (address := process.stdout.readline().strip()):
                    raise UserError("the service did not start; see above.")
                return _measured(_Client(address), files, exams)
            finally:
                process.terminate()


def _drawn(folder: Path) -> list[pydicom.Dataset]:
    from mammoclip_jax.data.phantom import generate
    from mammoclip_jax.data.phantom.exam import Parameters

    generate.generate(folder / "phantom", 1, Parameters(height=160, width=128))
    return [pydicom.dcmread(path) for path in sorted(folder.glob("phantom/exams/*/*.dcm"))]


class _Client:
    """One connection."""

    def __init__(self, address: str):
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of an answer."""
        headers = {"Content-Type": "application/zip"} if body else {}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def used(self) -> dict[str, list[float]]:
        """Seconds of CPU and bytes of memory of the server's and of the model's process."""
        lines = dict(line.rsplit(" ", 1) for line in self.ask("GET", "/metrics")[1].decode().splitlines())
        return {
            name: [float(lines[f"{of}process_{name}"]) for of in ("", "model_")]
            for name in ("cpu_seconds_total", "resident_memory_bytes")
        }


def _measured(client: _Client, files: list[pydicom.Dataset], exams: int) -> list[dict]:
    while client.ask("GET", "/health/ready")[0] != 200:
        time.sleep(0.1)
    rows, sent, seconds, begin, before = [], {}, [], time.perf_counter(), client.used()
    number = done = 0
    while done < exams:
        while len(sent) < AT_A_TIME and number < exams:
            body, number = _archive(files), number + 1
            start = time.perf_counter()
            status, said = client.ask("POST", "/exams", body)
            if status != 202:
                raise UserError(f"an exam was not taken: {status} {said.decode()}")
            sent[json.loads(said)["id"]] = start
        time.sleep(LOOK_EVERY)
        for id in list(sent):
            said = json.loads(client.ask("GET", f"/exams/{id}")[1])
            if said["state"] == "failed":
                raise UserError(f"an exam was not scored: {said['reason']}")
            if said["state"] != "done":
                break  # the others came later
            seconds.append(time.perf_counter() - sent.pop(id))
            done += 1
            if done % EVERY == 0 or done == exams:
                used = client.used()
                rows.append(_row(done, seconds, time.perf_counter() - begin, before, used))
                seconds, begin, before = [], time.perf_counter(), used
    return rows


def _row(done: int, seconds: list[float], wall: float, before: dict, after: dict) -> dict:
    cpu = [(new - old) / len(seconds) for old, new in zip(before["cpu_seconds_total"], after["cpu_seconds_total"])]
    mib = [round(held / 2**20) for held in after["resident_memory_bytes"]]
    return {
        "exams": done,
        "exams_per_second": round(len(seconds) / wall, 2),
        "p50_seconds": round(float(np.percentile(seconds, 50)), 2),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 2),
        "server_cpu_seconds": round(cpu[0], 3),
        "model_cpu_seconds": round(cpu[1], 3),
        "server_mib": mib[0],
        "model_mib": mib[1],
    }


def _archive(files: list[pydicom.Dataset]) -> bytes:
    study, packed = generate_uid(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, file in enumerate(files):
            file.StudyInstanceUID = study
            file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            written = io.BytesIO()
            file.save_as(written, enforce_file_format=True)
            archive.writestr(f"{number}.dcm", written.getvalue())
    return packed.getvalue()


def small_model():
    """What scores an exam in the service's process."""
    import jax
    import jax.numpy as jnp

    from mammoclip_jax import models
    from mammoclip_jax.config import defaults
    from mammoclip_jax.inference.heads import Classifier
    from mammoclip_jax.service import scoring

    config = defaults()
    config.image.channels = 1
    config.model.image.update(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.labels = ("mass", "calcification")
    example = jnp.zeros((1, HEIGHT, WIDTH, 1))
    variables = jax.jit(lambda key: models.classifier(config.model).init(key, example, train=False))(jax.random.key(0))
    form = {"geometry": "fit", "height": HEIGHT, "width": WIDTH, "intensity": "voi", "bits": 8, "crop": "robust"}
    meta = {"config": config.to_dict(), "preprocessing": form, "provenance": {}, "kind": "classifier"}
    return scoring.scorer(Classifier(variables, meta, 0, batch_size=scoring.VIEWS), _OPTIONS)


if __name__ == "__main__":
    from mammoclip_jax.service.server import Options, Service

    logging.basicConfig(level=logging.WARNING)
    Service(Options(Path(sys.argv[1]), port=0, limit=2**26), small_model).run(
        lambda address: print(address, flush=True)
    )
