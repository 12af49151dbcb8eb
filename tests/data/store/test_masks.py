"""Masks come back bit for bit, by record and channel; what is damaged, foreign or missing is named."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import masks as store
from mammoclip_jax.data.store.masks import Masks
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError

SIZE, CHANNELS = (12, 8), ("breast", "mass", *(f"other{i}" for i in range(8)))


def data_set(folder, fingerprint="f"):
    index = pd.DataFrame({"shard": [0] * 4, "position": range(4)})
    info = {"fingerprint": fingerprint, "preprocessing": {"height": SIZE[0], "width": SIZE[1]}}
    return Dataset(folder, info, index)


def drawn(channels):
    return {name: np.random.default_rng(i).random(SIZE) < 0.5 for i, name in enumerate(channels)}


@pytest.fixture
def folder(tmp_path):
    entries = (store.entry(row, CHANNELS, drawn(CHANNELS[:row])) for row in (1, 3))
    assert store.write(tmp_path, "annotated", CHANNELS, entries, "f", {"made_by": "me"}) == 2
    return tmp_path


def test_what_is_written_is_read(folder):
    masks = pickle.loads(pickle.dumps(Masks.open(data_set(folder))))
    assert masks.channels == CHANNELS and masks.rows == [1, 3] and masks.info["made_by"] == "me"
    for row in range(4):
        known = drawn(CHANNELS[:row]) if row in (1, 3) else {}
        assert masks.known(row).tolist() == [name in known for name in CHANNELS]
        found = masks.read(row)
        assert found.shape == (*SIZE, len(CHANNELS)) and found.dtype == np.uint8
        for channel, name in enumerate(CHANNELS):
            np.testing.assert_array_equal(found[..., channel], known.get(name, np.zeros(SIZE)))
        assert masks.pixels(row).tolist() == found.sum((0, 1)).tolist()


def test_few_channels_take_a_byte_a_pixel():
    planes = store.packed(np.stack(list(drawn(CHANNELS[:8]).values()), -1))
    assert planes.dtype == np.uint8 and store.packed(np.ones((*SIZE, 9), bool)).dtype == np.uint16
    np.testing.assert_array_equal(store.unpacked(planes, 8)[..., 7], drawn(CHANNELS[:8])[CHANNELS[7]])


def test_what_cannot_be_used_is_named(folder):
    with pytest.raises(UserError, match="has no masks 'mine'"):
        Masks.open(data_set(folder), "mine")
    with pytest.raises(UserError, match="of other images"):
        Masks.open(data_set(folder, "other"))
    records = folder / "masks-annotated.array_record"
    whole = Masks.open(data_set(folder))
    damaged = bytearray(records.read_bytes())
    damaged[damaged.index(b"MJX1") + 20] ^= 255  # in the first record
    records.write_bytes(damaged)
    with pytest.raises(UserError, match=r"masks-annotated.array_record is damaged at record 0"):
        whole.read(1)
    records.unlink()
    with pytest.raises(UserError, match="masks-annotated.array_record missing"):
        Masks.open(data_set(folder))
    description = folder / "masks-annotated.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"version": store.VERSION + 1}))
    with pytest.raises(UserError, match="update"):
        Masks.open(data_set(folder))
    store.remove(folder, "annotated")
    assert not list(folder.iterdir()) and store.info(folder) == {}


@pytest.mark.parametrize("channels", [(), ("a", "a"), tuple(map(str, range(17)))])
def test_channels_have_names_of_their_own(tmp_path, channels):
    with pytest.raises(UserError, match="1 to 16 channels"):
        store.write(tmp_path, "annotated", channels, [], "f", {})
