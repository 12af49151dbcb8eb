"""A run that learns from regions which weights have found says so, and is bound by their terms."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax import provenance
from mammoclip_jax.config import defaults
from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import licences, region_terms

TERMS = {"weights": "theirs", "licence": "mammo_fm", "title": "Mammo-FM", "stated": True}
OVERRIDE = {"action": "label", "override": "a letter", "of": ["theirs"], "date": "2026-05-03"}


def record(*keys):
    return base64.b64encode(np.array(keys, "<u8").tobytes()).decode()


@pytest.fixture
def datasets(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"fingerprint": "a"}))
    frame = pd.DataFrame([], columns=tables.COLUMNS.names)
    origin = {
        "name": "run",
        "title": "A teacher",
        "licences": [TERMS],
        "overrides": [OVERRIDE],
        "trained_on": record(2),
    }
    made = {"method": "teacher", "weights": {"kind": "dual_encoder", "step": 9}, "origin": origin, "created": "today"}
    tables.write(tmp_path, "pseudo", frame, made)
    tables.write(tmp_path, "sliding", frame, {"method": "sliding"})
    return {"films": SimpleNamespace(path=tmp_path)}


def noted(datasets, *sources, places=4, before={}, kind="pretrain"):
    config = defaults()
    config.task.kind = kind
    config.data.regions.update(places=places, sources=sources)
    meta = {"provenance": {"data": {}} | before, "trained_on": record(1)}
    region_terms.note(meta, config, datasets)
    return meta


def test_the_weights_that_found_regions_are_parents(datasets):
    before = {"licences": [{"licence": "mit", "weights": "others"}]}
    meta = noted(datasets, "boxes", "sliding", "pseudo", before=before)
    told = meta["provenance"]
    assert (
        told["regions"].keys() == {"films/sliding", "films/pseudo"} and "created" not in told["regions"]["films/pseudo"]
    )
    (parent,) = told["parents"]
    assert (parent["origin"], parent["kind"], parent["step"]) == ("A teacher", "dual_encoder", 9)
    assert parent["licences"] == ["Mammo-FM"] and parent["patients_known"]
    assert told["licences"] == [*before["licences"], TERMS] and told["overrides"] == [OVERRIDE] and told["data"] == {}
    assert provenance.patients_in(meta["trained_on"]).tolist() == [1, 2]
    with pytest.raises(UserError, match="exporting this model is against the terms"):
        licences.check("export", told)
    again = licences.joined(told, {"licences": [TERMS], "parents": [{"name": "a"}]})
    assert again["licences"] == told["licences"] and len(again["parents"]) == 2 and again["overrides"] == [OVERRIDE]


def test_a_detector_owes_for_the_boxes_that_it_learns_from(datasets):
    told = noted(datasets, "pseudo", places=0, kind="detector")["provenance"]
    assert told["licences"] == [TERMS] and told["regions"].keys() == {"films/pseudo"}
    assert "regions" not in noted(datasets, "boxes", places=0, kind="detector")["provenance"]


def test_nothing_is_owed_for_boxes(datasets):
    for meta in (noted(datasets, "boxes"), noted(datasets, "boxes", "pseudo", places=0)):
        assert meta == {"provenance": {"data": {}}, "trained_on": record(1)}
    with pytest.raises(UserError, match="no regions 'other'"):
        noted(datasets, "other")
