"""Device memory of the contrastive loss at a global batch of 32,768, from the TPU compiler. Needs libtpu, no TPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_ring_at_32768_rows_on_16_chips_stays_under_128_mib():
    """In a process of its own: libtpu stays in the one that loads it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("aot_memory.py"), "ring", "32768"],
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])["ring 32768"]
    assert 16 < figures["peak"] < 128  # queries, keys and their gradients alone take 16
    assert figures["temporary"] < 128
