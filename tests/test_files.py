"""A file is there whole or as it was before; reading a table leaves no thread behind."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.files import whole, write_text


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(OSError, match="full"), whole(path) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["table.csv"]


def test_a_table_comes_back_from_a_path_and_from_bytes(tmp_path):
    table = pd.DataFrame({"text": ["a", None], "texts": [["b"], []], "count": [1, 2], "share": [0.5, None]})
    table.to_parquet(tmp_path / "t.parquet", index=False)
    for content in (tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes()):
        pd.testing.assert_frame_equal(read_table(content), pd.read_parquet(tmp_path / "t.parquet"))
    assert list(read_table(tmp_path / "t.parquet", columns=["count"])) == ["count"]
    with pytest.raises(OSError):
        read_table(tmp_path / "gone.parquet")
    with pytest.raises(ValueError, match="Parquet"):
        read_table(b"no table")


def test_no_thread_is_started(tmp_path):
    """In a process of its own: a thread of Arrow's that starts while the process ends would abort it."""
    pd.DataFrame({"a": range(1000)}).to_parquet(tmp_path / "t.parquet")
    program = """
import os, sys
from mammoclip_jax.data.store.parquet import read_table
before = os.listdir("/proc/self/task")
assert len(read_table(sys.argv[1])) == 1000
assert os.listdir("/proc/self/task") == before
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "t.parquet")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
