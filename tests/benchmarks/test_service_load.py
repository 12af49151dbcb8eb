"""benchmark --mode=service: the loop that sends exams and waits for them, on a service with a model of a few lines."""

from pathlib import Path

import pytest
from serving import serving

from mammoclip_jax.benchmarks import service
from mammoclip_jax.errors import UserError


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_each_exam_is_sent_once_and_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "EVERY", 3)
    files = service._drawn(tmp_path)
    with serving(tmp_path) as (own, address):
        rows = service._measured(service._Client(address), files, 5)
        assert [row["exams"] for row in rows] == [3, 5] and own.spool.counts()["done"] == 5
        assert all(row["p50_seconds"] <= row["p95_seconds"] and row["model_mib"] > 1 for row in rows)
        own.spool.reserve = 2**62
        with pytest.raises(UserError, match="not taken: 507"):
            service._measured(service._Client(address), files[1:], 1)
