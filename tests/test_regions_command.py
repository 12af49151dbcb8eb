"""The command `regions`: its flags, its table, its figures and its page."""

import json
from types import SimpleNamespace

import pytest
from small_phantoms import prepared

from mammoclip_jax import regions as command
from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("command"), exams=1, mass_prevalence=1.0)


@pytest.fixture
def call(dataset, tmp_path, monkeypatch):
    def call(**given):
        values = dict(name="", weights="", regions="", concepts="", option=[], override_licence="", batch_size=None)
        values |= {"data": str(dataset.path), "preview": 2, "json": str(tmp_path / "figures.json")}
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**values | given))
        assert command.main([]) == 0
        return json.loads((tmp_path / "figures.json").read_text())

    return call


def test_from_flags_to_a_table_a_page_and_figures(call, dataset, capsys):
    figures = call(method="boxes", name="mine")
    boxes = sum(len(json.loads(text)) for text in dataset.index["boxes_canvas"])
    table = tables.read(dataset.path, "mine")
    assert len(table.frame) == boxes == figures["counts"]["regions"] >= 4 and table.info["method"] == "boxes"
    assert (dataset.path / "regions-mine.html").read_text().count("<article") == 2
    said = capsys.readouterr().out
    assert f"{boxes} regions 'mine' in 4 images" in said and "mass: " in said and figures["page"] in said
    few = call(method="sliding", option=["places=5", "scales=[0.1]"], preview=0)
    assert few["counts"]["regions"] == 20 and few["options"]["scales"] == [0.1] and "page" not in few


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(method="teacher", regions="boxes", concepts="phantom"), "--method=teacher needs --weights"),
        (dict(method="sliding", weights="runs/a"), "has no use for --weights"),
        (dict(method="sliding", override_licence="mine"), "no use for --override_licence"),
        (dict(method="sliding", option=["place=5"]), "no option 'place'.*Did you mean 'places'"),
        (dict(method="sliding", option=["places=few"]), "--option=places=few must be a number"),
        (dict(method="detector", weights="runs/a", option=["model=b"]), "write --weights"),
        (dict(method="boxes", name="a/b"), "cannot be called 'a/b'"),
        (dict(method="boxes", data="nowhere"), "no finished data set"),
        (dict(method="masks", option=["masks=none"]), "has no masks 'none'"),
    ],
)
def test_wrong_flags_are_said(call, given, message):
    with pytest.raises(UserError, match=message):
        call(**given)
