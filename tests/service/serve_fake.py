"""The service as a process of its own: python serve_fake.py SPOOL DICOM_PORT PAUSE QUIET; prints its address."""

import sys
from pathlib import Path

import fake_scoring

from mammoclip_jax.service.server import Options, Service

if __name__ == "__main__":
    spool, port, pause, quiet = sys.argv[1:]
    options = Options(Path(spool), port=0, dicom_port=int(port), quiet=float(quiet), grace=0.0)
    Service(options, fake_scoring.make, (float(pause),)).run(lambda address: print(address, flush=True))
    print("stopped", flush=True)
