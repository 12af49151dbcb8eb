import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import shards
from mammoclip_jax.data.store.codecs import encode
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError


def images(bits: int, count: int = 5) -> list[np.ndarray]:
    generator = np.random.default_rng(bits)
    dtype = np.uint8 if bits == 8 else np.uint16
    return [generator.integers(0, 2**bits, (31, 17 + i)).astype(dtype) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    """A data set of two shards with 3 and 2 records, written by hand."""
    pictures, rows = images(8), []
    for shard, members in enumerate([(0, 1, 2), (3, 4)]):
        writer = shards.ShardWriter(tmp_path / shards.shard_name(shard, 2))
        for position, member in enumerate(members):
            writer.write(encode(pictures[member], "zstd"))
            rows.append({"shard": shard, "position": position, "texts": ["a"], "sections": ["findings"]})
        assert not (tmp_path / shards.shard_name(shard, 2)).exists()
        writer.close()
    pd.DataFrame(rows).to_parquet(tmp_path / "index.parquet")
    info = {"schema_version": 1, "shards": 2, "counts": {"images": 5}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    return tmp_path, pictures


def test_dataset_reads_each_row_in_threads_and_after_pickling(folder):
    path, pictures = folder
    dataset = Dataset.open(path)
    assert len(dataset) == 5 and dataset.index["texts"][0] == ["a"]
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        with ThreadPoolExecutor(4) as pool:
            rows = [4, 0, 2, 1, 3] * 20
            for row, image in zip(rows, pool.map(copy.read, rows)):
                np.testing.assert_array_equal(image, pictures[row])


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    path, _ = folder
    with pytest.raises(UserError, match="dataset.json"):
        Dataset.open(path / "nowhere")
    info = (path / "dataset.json").read_text()
    (path / "dataset.json").write_text(info.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(UserError, match="schema version 9"):
        Dataset.open(path)
    (path / "dataset.json").write_text(info.replace('"images": 5', '"images": 6'))
    with pytest.raises(UserError, match="counts 6"):
        Dataset.open(path)
    (path / "dataset.json").write_text(info)
    (path / shards.shard_name(1, 2)).unlink()
    with pytest.raises(UserError, match="images-00001-of-00002.array_record missing"):
        Dataset.open(path)


def test_a_damaged_shard_is_named(folder):
    path, pictures = folder
    file = path / shards.shard_name(0, 2)
    data = bytearray(file.read_bytes())
    data[100:400] = bytes(300)
    file.write_bytes(data)
    with pytest.raises(UserError, match="images-00000-of-00002"):
        for row in range(3):
            np.testing.assert_array_equal(Dataset.open(path).read(row), pictures[row])


def test_a_record_comes_as_it_was_written(folder):
    path, pictures = folder
    dataset = Dataset.open(path)
    for row, picture in enumerate(pictures):
        assert dataset.record(row) == encode(picture, "zstd")


def test_a_record_that_is_none_is_named(folder):
    path, _ = folder
    writer = shards.ShardWriter(path / shards.shard_name(1, 2))
    for record in (b"short", b"certainly not a record of this version"):
        writer.write(record)
    writer.close()
    dataset = Dataset.open(path)
    for row in (3, 4):
        with pytest.raises(UserError, match=f"images-00001-of-00002.array_record is damaged at record {row - 3}"):
            dataset.read(row)
