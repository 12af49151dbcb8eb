import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import shards, storage
from mammoclip_jax.data.store.codecs import encode
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError

FOLDER = "memory://bucket/set"
SHARD = shards.shard_name(0, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMMOCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures():
    return [np.full((5, 7), value, np.uint8) for value in range(3)]


@pytest.fixture
def local(tmp_path, pictures):
    folder = tmp_path / "set"
    folder.mkdir()
    writer = shards.ShardWriter(folder / SHARD)
    for picture in pictures:
        writer.write(encode(picture, "raw"))
    writer.close()
    rows = [{"shard": 0, "position": row, "texts": ["a"], "sections": ["caption"]} for row in range(3)]
    pd.DataFrame(rows).to_parquet(folder / "index.parquet")
    (folder / "dataset.json").write_text(json.dumps({"schema_version": 1, "shards": 1, "counts": {"images": 3}}))
    return folder


@pytest.fixture
def remote(local):
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/bucket/set", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_a_remote_folder_reads_as_a_local_one_and_is_fetched_once(remote, pictures, cache, monkeypatch):
    fetched = []
    get_file = type(remote).get_file
    monkeypatch.setattr(
        type(remote),
        "get_file",
        lambda self, path, *args, **kw: (fetched.append(path), get_file(self, path, *args, **kw)),
    )
    dataset = Dataset.open(FOLDER)
    assert str(dataset.path) == FOLDER and not fetched
    with ThreadPoolExecutor(4) as pool:
        for row, image in zip([0, 1, 2] * 5, pool.map(dataset.read, [0, 1, 2] * 5)):
            np.testing.assert_array_equal(image, pictures[row])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(2), pictures[2])
    assert len(fetched) == 1
    assert [file.name.split("-", 1)[1] for file in cache.glob("*.array_record")] == [SHARD]


def test_many_at_once_fetch_one_file(remote, cache):
    with ThreadPoolExecutor(8) as pool:
        files = set(pool.map(lambda _: storage.located(f"{FOLDER}/{SHARD}").fetched(), range(16)))
    assert len(files) == 1 and files.pop().read_bytes() == remote.cat(f"/bucket/set/{SHARD}")
    assert not list(cache.glob("*.partial"))


def test_a_changed_file_is_fetched_again(remote):
    file = storage.located(FOLDER) / "index.parquet"
    remote.pipe("/bucket/set/index.parquet", b"one")
    assert file.fetched().read_bytes() == b"one"
    remote.pipe("/bucket/set/index.parquet", b"two")
    assert file.fetched().read_bytes() == b"two"


def test_half_a_file_is_not_kept(remote, cache, monkeypatch):
    def half(self, path, target, **kw):
        with open(target, "wb") as file:
            file.write(self.cat(path)[:10])

    monkeypatch.setattr(type(remote), "get_file", half)
    with pytest.raises(UserError, match="10 of"):
        Dataset.open(FOLDER).read(0)
    assert not list(cache.glob("*.array_record")) and not list(cache.glob("*.partial"))


def test_local_folders_are_read_where_they_are(local, pictures, cache):
    for path in (local, str(local), f"file://{local}"):
        dataset = Dataset.open(path)
        assert dataset.path == local
        np.testing.assert_array_equal(dataset.read(1), pictures[1])
    assert not cache.exists()


def test_what_cannot_be_reached_is_said(remote):
    with pytest.raises(UserError, match="memory://bucket/nowhere is no finished data set"):
        Dataset.open("memory://bucket/nowhere")
    with pytest.raises(UserError, match="nosuch://bucket"):
        Dataset.open("nosuch://bucket/set")
    remote.rm(f"/bucket/set/{SHARD}")
    with pytest.raises(UserError, match=f"{SHARD} missing"):
        Dataset.open(FOLDER)


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("MAMMOCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(storage.cache_folder()) == "/x/mammoclip_jax"
