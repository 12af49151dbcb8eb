"""The regions of a whole data set: counted, resumable, bound to how they were found."""

import json

import numpy as np
import pytest
from fake_sets import FakeDataset, H, W

from mammoclip_jax.data.preview.region_page import preview
from mammoclip_jax.data.regions import job
from mammoclip_jax.data.regions.found import Found, Method
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.errors import UserError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Seven images, in parts of three."""
    monkeypatch.setattr(job, "PART", 3)
    rows = [{"boxes_canvas": "[]", "transform": "{}", "flags": "", "vendor": ""} for _ in range(7)]
    rows[0]["boxes_canvas"] = json.dumps([{"label": "mass", "box": [0, 0, 2, 3]}])  # where there is no region
    rows[5]["boxes_canvas"] = json.dumps(
        [{"labels": ["mass", "b"], "box": [0, 1, 2, 5]}, {"label": "c", "box": [2, 0, 4, 3]}]
    )
    rows[4]["boxes_canvas"] = rows[0]["boxes_canvas"]
    dataset = FakeDataset(rows, path=tmp_path)
    dataset.info["fingerprint"] = "first"
    (tmp_path / "dataset.json").write_text(json.dumps(dataset.info))
    return dataset


def method(calls, stop_at=None, **options):
    """An image's number of regions is its record modulo 3, the last of them outside; odd ones are masses."""

    def find(rows, images):
        calls.extend(rows)
        if stop_at in rows:
            raise KeyboardInterrupt
        assert [int(image[0, 0]) for image in images] == list(rows)
        return [
            Found(
                np.array([[0, 0, 2, 3]] * (row % 3) + [[W, 0, W + 2, 2]], np.float32),
                np.full(row % 3 + 1, 0.5),
                ["mass" if row % 2 else ""] * (row % 3 + 1),
                [np.array([row, 1.0])] * (row % 3 + 1),
                {"far": row, "never": 0},
                {"unsure": row % 3},
            )
            for row in rows
        ]

    return lambda: Method(find, {"method": "made up", "options": options}, about={"origin": {"licences": []}})


COUNTS = {
    "images": 7,
    "without_region": 3,
    "regions": 6,
    "by_label": {"": 3, "mass": 3},
    "dropped": {"far": 21, "outside the canvas": 7},
    "unlabelled": {"unsure": 6},
    "annotated": {"c": 1, "mass": 2, "mass, b": 1},
    "covered_0.25": {"mass": 1, "mass, b": 1},
    "covered_0.5": {"mass": 1},
}


def test_a_stopped_run_goes_on_to_the_same_table(dataset, tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        job.find(dataset, "mine", method(calls, stop_at=4))
    with pytest.raises(UserError, match="no regions 'mine'"):
        region_tables.read(tmp_path, "mine")
    assert calls == [0, 1, 2, 3, 4, 5]
    calls.clear()
    info = job.find(dataset, "mine", method(calls))
    assert calls == [3, 4, 5, 6] and info["counts"] == COUNTS and not info["up_to_date"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    table = region_tables.read(tmp_path, "mine")
    assert table.frame["row"].tolist() == [1, 2, 2, 4, 5, 5] and table.info["origin"] == {"licences": []}
    assert [list(x) for x in table.frame["cosines"]] == [[row, 1] for row in table.frame["row"]]
    whole = job.find(dataset, "whole", method([]))
    assert whole["sha256"] == info["sha256"]


def test_what_is_there_is_left_and_what_was_found_otherwise_is_refused(dataset, tmp_path):
    job.find(dataset, "mine", method([], threshold=0.5))
    calls = []
    assert job.find(dataset, "mine", method(calls, threshold=0.5))["up_to_date"] and not calls
    with pytest.raises(UserError, match=r"options was {'threshold': 0.5}, and is {'threshold': 0.2} now.*--name"):
        job.find(dataset, "mine", method(calls, threshold=0.2))
    with pytest.raises(KeyboardInterrupt):
        job.find(dataset, "stopped", method([], stop_at=4))
    with pytest.raises(UserError, match="a run was stopped .* remove .regions-stopped"):
        job.find(dataset, "stopped", method(calls, threshold=0.2))
    assert not calls
    dataset.info["fingerprint"] = "second"
    (tmp_path / "dataset.json").write_text(json.dumps(dataset.info))
    for name in ("mine", "stopped"):
        assert not job.find(dataset, name, method(calls, threshold=0.2))["up_to_date"]
    assert len(calls) == 14


def test_the_page_shows_images_with_and_without_regions(dataset, tmp_path):
    job.find(dataset, "mine", method([]))
    page = preview(dataset, "mine", count=4)
    text = page.read_text()
    assert page == tmp_path / "regions-mine.html" and text.count("<article") == 4
    assert "6 regions in 7 images, 3 without any" in text and "found: mass" in text and "no boxes" in text
    assert (
        "left out, outside the canvas" in text
        and "annotated boxes, mass, b" in text
        and "http" not in text
        and str(tmp_path) not in text
    )
    assert (H, W) == dataset.read(0).shape and preview(dataset, "mine", count=4).read_text() == text


def test_regions_are_written_beside_sets_on_this_machine_alone(dataset):
    dataset.path = "s3://bucket/set"
    with pytest.raises(UserError, match="not on this machine"):
        job.find(dataset, "mine", method([]))
