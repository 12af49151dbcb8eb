"""Items that are pickled as the name of a file, and read from it one by one."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.batches.breasts import Breast
from mammoclip_jax.data.batches.stream import of_items
from mammoclip_jax.data.store import shared as shared_file
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.shared import ByRow, Shared


@pytest.mark.parametrize("items", [[], ["a", "", 3, None], [Breast(0, ((1,), (2, 3)), ("a text",))] * 5])
def test_items_are_read_as_they_were_given(items):
    shared = Shared(items)
    again = pickle.loads(pickle.dumps(shared))
    assert pickle.dumps(shared) == pickle.dumps(shared)  # written once
    for copy in (shared, again, pickle.loads(pickle.dumps(again))):
        assert len(copy) == len(items) and list(copy) == items
        assert [copy[-1 - place] for place in range(len(items))] == items[::-1]
        with pytest.raises(IndexError):
            copy[len(items)]


def test_a_stream_pickles_to_the_same_few_bytes_whatever_it_holds():
    sizes = []
    for count in (10, 10_000):
        stream = of_items([Breast(0, ((i,),), (f"text {i}",)) for i in range(count)]).seed(1).shuffle()
        content = pickle.dumps(stream)
        again = pickle.loads(content)
        assert [again[i] for i in range(10)] == [stream[i] for i in range(10)]
        sizes.append(len(content))
    assert isinstance(stream, grain.MapDataset)
    assert abs(sizes[1] - sizes[0]) < 100


@pytest.mark.parametrize("named", [True, False])
def test_nothing_is_left_of_the_file_when_its_process_ends(named, tmp_path):
    ends = "pass" if named else "os.kill(os.getpid(), signal.SIGKILL)"
    code = (
        "import os, pickle, signal; from mammoclip_jax.data.store import shared\n"
        f"if {named}: shared._DESCRIPTORS /= 'absent'\n"
        f"s = shared.Shared([1]); content = pickle.dumps(s); assert pickle.loads(content)[0] == 1; "
        f"print(s._file, flush=True); {ends}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.returncode == (0 if named else -9), done.stderr
    assert done.stdout.startswith(str(tmp_path) if named else "/proc/") and not list(tmp_path.iterdir())


def test_threads_that_pickle_it_at_once_write_it_once(monkeypatch):
    written = []
    monkeypatch.setattr(shared_file, "_written", lambda items: written.append(items) or time.sleep(0.05) or "a file")
    shared = Shared([1])
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: shared.__reduce__()[1], range(4))) == {("a file",)}
    assert written == [[1]]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the file has a name")
def test_another_process_reads_it_while_this_one_lives():
    content = pickle.dumps(Shared(["first", "second"])).hex()
    code = f"import pickle; print(list(pickle.loads(bytes.fromhex({content!r}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['first', 'second']"


def test_a_data_set_is_sent_without_its_index():
    index = pd.DataFrame({"shard": 0, "position": np.arange(5000), "texts": [[f"text {i}"] for i in range(5000)]})
    dataset = Dataset("folder", {"shards": 1}, index)
    content = pickle.dumps(dataset)
    assert len(content) < 16 * 5000 + 5000  # shard and position
    again = pickle.loads(content)
    assert len(again) == 5000
    pd.testing.assert_frame_equal(again.index, index)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(again)).index, index)


def test_rows_are_found_by_their_numbers():
    known = {7: ["a"], 2: ("b", 3), 100: []}
    rows = ByRow(known)
    for own in (rows, pickle.loads(pickle.dumps(rows))):
        assert own == known and list(own) == [2, 7, 100]
        assert own.get(3, "none") == "none" and 101 not in own and own[2] == ("b", 3)
    assert not ByRow({})
