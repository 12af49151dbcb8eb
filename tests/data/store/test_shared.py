"""Items that are pickled as the name of a file, and read from it one by one."""

import pickle
import subprocess
import sys

import grain
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.batches.breasts import Breast
from mammoclip_jax.data.batches.stream import of_items
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


def test_the_file_is_removed_when_its_process_ends():
    code = "import pickle; from mammoclip_jax.data.store.shared import Shared; s = Shared([1]); pickle.dumps(s); print(s._file)"
    from pathlib import Path

    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert name.endswith(".items") and not Path(name).exists()


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
