"""Data sets with MLO views upright and one scale a breast: prepared, checked, brought up to date, read as files."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from measure_upright import agreement, angles, columns, lines_in_cc

from mammoclip_jax.data import exams, increment, manifest
from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.phantom import generate as phantom
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.data.sources.phantom import read, read_muscles
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.verify import verify
from mammoclip_jax.errors import UserError

EXAMS = 6
CANVAS = dict(height=160, width=112, workers=0)
BOTH = dict(upright=True, scale="breast")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "set"
    phantom.generate(out, EXAMS, Parameters(3, 224, 180, 1.0, 1.0, 1.0, perpendicular=True))
    return out


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "both"
    prepare("phantom", phantoms, out, options={"pectoral_angle": True}, **CANVAS, **BOTH)
    return out


def test_what_was_turned_is_counted_and_the_set_is_whole(folder):
    dataset = Dataset.open(folder)
    flags = dataset.info["counts"]["flags"]
    assert flags.get("upright", 0) + flags.get("no_pectoral_line", 0) == 2 * EXAMS
    assert flags["upright"] >= 0.8 * 2 * EXAMS and "scale_alone" not in flags
    assert {name: dataset.info["preprocessing"][name] for name in BOTH} == BOTH
    found = verify(folder)
    assert found["ok"], found["faults"]
    turned = {row.image for row in dataset.index.itertuples() if Transform.from_json(row.transform).rotation}
    assert turned == {row.image for row in dataset.index.itertuples() if "upright" in row.flags.split(",")}
    views = dict(zip(dataset.index["image"], dataset.index["view"]))
    assert {views[image] for image in turned} == {"MLO"}


def test_the_true_angle_is_in_the_labels(folder, phantoms):
    index, true = Dataset.open(folder).index, read_muscles(phantoms).set_index("image")["angle"]
    told = {row.image: json.loads(row.labels).get("pectoral_angle") for row in index.itertuples()}
    assert {image: angle for image, angle in told.items() if angle} == true.to_dict()
    assert np.mean(angles(index, phantoms) <= 5) >= 0.8


@pytest.mark.slow
def test_upright_with_one_scale_a_lesion_has_one_depth(folder, phantoms, tmp_path):
    plain = tmp_path / "plain"
    prepare("phantom", phantoms, plain, **CANVAS)
    (before, few), (after, most) = (agreement(columns(Dataset.open(out).index)) for out in (plain, folder))
    assert after > before and most >= 0.95 > few
    assert lines_in_cc(phantoms, tmp_path / "cc") <= 0.25


def test_both_views_of_a_breast_have_one_scale(folder):
    index = Dataset.open(folder).index
    scales = pd.Series([Transform.from_json(text).scale[1] for text in index["transform"]])
    spread = scales.groupby(manifest.breast_keys(index)).agg(["min", "max"])
    assert (spread["max"] / spread["min"] - 1 < 0.02).all() and len(spread) == 2 * EXAMS
    contents = [Transform.from_json(text).content for text in index["transform"]]
    fills = [bottom - top == 160 or right - left == 112 for top, left, bottom, right in contents]
    assert pd.Series(fills).groupby(manifest.breast_keys(index)).any().all()


def test_files_are_read_as_they_were_prepared(folder, phantoms):
    """As `predict` does it: from the files of an exam alone."""
    dataset = Dataset.open(folder)
    preprocessing = Preprocessing.from_dict(dataset.info["preprocessing"])
    rows = read(phantoms).rows[:4]
    found = exams.of_files([phantoms / file for file in rows["file"]])
    others = exams.other_views(found)
    assert all(len(beside) == 1 for beside in others.values())
    for name, row, (place, fields) in zip(found, rows.itertuples(), enumerate(found.values())):
        assert (fields.laterality, fields.view) == (row.laterality, row.view)
        got = render(name, preprocessing, others=[Source(other) for other in others[name]])
        np.testing.assert_array_equal(got.image, dataset.read(place))
        assert got.transform == Transform.from_json(dataset.index["transform"].iloc[place])


def test_other_options_on_the_same_folder_are_refused(folder, phantoms, tmp_path):
    with pytest.raises(UserError, match="upright is True there, False now"):
        prepare("phantom", phantoms, folder, options={"pectoral_angle": True}, **CANVAS, scale="breast")
    prepare("phantom", phantoms, tmp_path / "plain", **CANVAS)
    with pytest.raises(UserError, match="scale is 'image' there, 'breast' now"):
        prepare("phantom", phantoms, tmp_path / "plain", **CANVAS, scale="breast")


def test_a_changed_view_makes_the_other_anew(phantoms, tmp_path):
    out, file = tmp_path / "out", phantoms / read(phantoms).rows["file"].iloc[1]
    prepare("phantom", phantoms, out, **CANVAS, scale="breast")
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert prepare("phantom", phantoms, out, **CANVAS, scale="breast")["made"] == 2


def test_the_other_views_of_a_row():
    facts = [
        ("p", "s", "L", "CC"),
        ("p", "s", "L", "MLO"),
        ("p", "s", "R", "CC"),
        ("p", "t", "L", "MLO"),
        ("p", "s", "L", ""),
        ("p", "s", "L", "XCCL"),
        ("p", "s", "", "CC"),
        ("q", "s", "L", "CC"),
    ]
    rows = pd.DataFrame(facts, columns=["patient", "study", "laterality", "view"]).assign(
        image=[f"i{place}" for place in range(len(facts))], file="f", vendor="", boxes="[]"
    )
    others = manifest.other_views(rows)
    assert others == [(1, 4), (0, 4), (), (), (0, 1), (0, 1, 4), (), ()]
    stamps = [f"{place} 1" for place in range(len(facts))]
    plain, compared = (increment.keys(rows, stamps, increment.plain_hash, more) for more in (None, others))
    assert [a == b for a, b in zip(plain, compared)] == [not more for more in others]
    moved = increment.keys(rows, ["0 2", *stamps[1:]], increment.plain_hash, others)
    assert [a == b for a, b in zip(moved, compared)] == [False, False, True, True, False, False, True, True]
