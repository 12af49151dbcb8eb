"""Tables of regions: what is written comes back, and nothing else is taken for it."""

import json

import fsspec
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import region_tables
from mammoclip_jax.errors import UserError

ROWS = [(0, 1, 2, 3.5, 4, 0.5, "mass", []), (0, 0, 0, 9, 9, 1, "", []), (2, 5, 5, 6, 7, 0.25, "", [0.5, -1])]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"fingerprint": "a"}))
    region_tables.write(tmp_path, "boxes", pd.DataFrame(ROWS, columns=region_tables.COLUMNS.names), {"method": "boxes"})
    return tmp_path


def _is_whole(table):
    frame = table.frame
    assert frame["row"].dtype == np.int32 and all(frame[side].dtype == np.float32 for side in region_tables.BOX)
    assert [(*row[:-1], list(row.cosines)) for row in frame.itertuples(index=False)] == ROWS
    assert table.info["method"] == "boxes" and table.info["regions"] == 3 and table.info["fingerprint"] == "a"


def test_a_table_comes_back_as_it_was_from_any_storage(folder, tmp_path, monkeypatch):
    _is_whole(region_tables.read(folder, "boxes"))
    monkeypatch.setenv("MAMMOCLIP_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/regions/set", recursive=True)
    _is_whole(region_tables.read("memory://regions/set", "boxes"))
    memory.rm("/regions", recursive=True)


def test_none_has_no_lists_and_no_rows(folder):
    region_tables.write(folder, "none", pd.DataFrame([], columns=region_tables.COLUMNS.names), {})
    assert region_tables.read(folder, "none").frame.empty and region_tables.names(folder) == ["boxes", "none"]


def test_what_is_not_there_or_not_whole_is_said(folder):
    with pytest.raises(UserError, match=r"no regions 'boxs' .*Did you mean 'boxes'"):
        region_tables.read(folder, "boxs")
    with pytest.raises(UserError, match="cannot be called"):
        region_tables.read(folder, "../boxes")
    (folder / "regions-boxes.parquet").rename(folder / "other.parquet")
    with pytest.raises(UserError, match="regions-boxes.parquet is missing"):
        region_tables.read(folder, "boxes")


def test_another_data_set_or_table_is_refused(folder):
    region_tables.write(folder, "none", pd.DataFrame([], columns=region_tables.COLUMNS.names), {})
    (folder / "regions-none.parquet").replace(folder / "regions-boxes.parquet")
    with pytest.raises(UserError, match="do not belong together"):
        region_tables.read(folder, "boxes")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "b"}))
    with pytest.raises(UserError, match="fingerprint a, this one has b"):
        region_tables.read(folder, "boxes")


def test_a_stopped_writer_leaves_no_table(folder, monkeypatch):
    def stop(*args, **options):
        raise OSError("no room")

    monkeypatch.setattr(region_tables.side_tables, "write_frame", stop)
    with pytest.raises(OSError):
        region_tables.write(folder, "boxes", pd.DataFrame([], columns=region_tables.COLUMNS.names), {})
    with pytest.raises(UserError, match="no regions"):
        region_tables.read(folder, "boxes")
