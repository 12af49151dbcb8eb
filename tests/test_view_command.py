"""The command `view`: what its words and flags may be, whom it serves, and the page of one exam."""

import re
from types import SimpleNamespace

import pytest
import uvicorn
from fakes import FakeModel
from small_set import dataset

from mammoclip_jax import view as command
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.members import FILE
from mammoclip_jax.inference import loading
from mammoclip_jax.viewer.catalogue import Catalogue

FLAGS = dict(dataset="set", host="127.0.0.1", port=0, token="", prompts="", slices="", cache="", export="", out="")


@pytest.fixture
def data(monkeypatch):
    made = dataset()
    monkeypatch.setattr(Dataset, "open", lambda name: made)
    return made


@pytest.fixture
def predicted(data, tmp_path):
    """A folder of predictions of the data set."""
    folder = tmp_path / "runs" / "probe" / "evaluation" / "phantom" / "probe"
    folder.mkdir(parents=True)
    table = data.index[["dataset", "patient", "study", "image", "laterality", "view"]].assign(label="mass", truth="1")
    table.assign(score=0.5).to_csv(folder / "predictions.csv", index=False)
    return tmp_path / "runs" / "probe" / "evaluation"


@pytest.fixture
def run(monkeypatch):
    def call(*words, **given):
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**FLAGS | given))
        return command.main(["view", *map(str, words)])

    return call


@pytest.mark.parametrize(
    "words, given, message",
    [
        ((), {}, "name one run"),
        (("a", "b", "c"), {}, "name one run"),
        (("a",), {"export": "x"}, "go together"),
        (("a",), {"out": "x"}, "go together"),
        (("a", "b"), {"export": "x", "out": "y"}, "of no use"),
        (("a",), {"token": "short"}, "16 or more"),
        (("a",), {"token": "with spaces; and more of them"}, "16 or more"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run, words, given, message):
    with pytest.raises(UserError, match=message):
        run(*words, **given)


def test_predictions_need_no_model_and_refuse_its_flags(run, predicted):
    for given, message in (({"prompts": "mama"}, "without a dual encoder"), ({"cache": "x"}, "predictions alone")):
        with pytest.raises(UserError, match=message):
            run(predicted, **given)
    assert command.only_predictions(str(predicted)) and not command.only_predictions("hf://owner/name")
    (predicted.parent / "checkpoints").mkdir()
    assert not command.only_predictions(str(predicted.parent))


def test_an_exam_is_written_as_a_page(run, predicted, tmp_path, capsys):
    with pytest.raises(UserError, match="no exam 'p000'"):
        run(predicted, export="p000", out=str(tmp_path / "exam.html"))
    name = Catalogue(dataset()).exams[0]
    target = tmp_path / "pages" / "exam.html"
    assert run(predicted, export=name, out=str(target)) == 0 and str(target) in capsys.readouterr().out
    page = target.read_text()
    assert name in page and page.count('<image class="film"') == 4 and "+0.500" in page and "p000" not in page


def test_a_page_of_a_model_has_its_maps_and_says_which_it_is(run, data, monkeypatch, tmp_path):
    model = FakeModel()
    model.fingerprint = lambda: "feedc0ffee"
    monkeypatch.setattr(loading, "load", lambda name: model)
    target = tmp_path / "exam.html"
    assert run("runs/mine", export=Catalogue(data).exams[1], out=str(target), prompts="phantom") == 0
    page = target.read_text()
    labels = re.findall(r'name="label" value="(\w+)"', page)
    assert labels and page.count('<image class="heat') == 4 * len(labels)
    assert "mine · dual encoder" in page and "feedc0ffee" in page and "grad_cam" in page


def test_what_predict_wrote_is_not_for_this_page(run, data, tmp_path):
    (tmp_path / "prediction.json").write_text("{}")
    with pytest.raises(UserError, match="exam.html"):
        run(tmp_path)


def test_a_model_prepared_otherwise_is_refused(run, data, monkeypatch):
    model = FakeModel()
    model.preprocessing = model.preprocessing | {"height": 128}
    monkeypatch.setattr(loading, "load", lambda name: model)
    with pytest.raises(UserError, match="prepared with height=64"):
        run("run")


def test_this_machine_alone_is_served_without_a_token(run, predicted, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: seen.append((self.config, sockets[0].getsockname()))
    )
    assert run(predicted) == 0
    (config, (host, port)) = seen.pop()
    assert host == "127.0.0.1" and f"page: http://127.0.0.1:{port}/\n" in capsys.readouterr().out
    assert not config.access_log
    run(predicted, host="0.0.0.0")
    (_, (host, port)) = seen.pop()
    assert host == "0.0.0.0" and f":{port}/?token=" in capsys.readouterr().out
    run(predicted, token="my-own-token-0123456789")
    assert "?token=my-own-token-0123456789" in capsys.readouterr().out


def test_a_port_that_is_taken_is_told(run, predicted):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError, match="cannot listen"):
            run(predicted, port=taken.getsockname()[1])


def test_slices_beside_the_run_are_an_entry(data, tmp_path):
    catalogue = SimpleNamespace(dataset=data)
    word = str(tmp_path / "runs" / "classifier")
    values = SimpleNamespace(slices="")
    assert command.open_slices(values, [word], catalogue) == []
    target = tmp_path / "runs" / "slices" / "results" / "phantom" / FILE
    target.parent.mkdir(parents=True)
    table = data.index[["dataset", "image"]].assign(part="test", truth=1, score=0.1, right=0)
    table.assign(**{"mass, without clip": 1}).to_csv(target, index=False)
    assert [one.title for one in command.open_slices(values, [word], catalogue)] == ["mass, without clip"]
    with pytest.raises(UserError, match="holds no"):
        command.open_slices(SimpleNamespace(slices=str(tmp_path / "runs" / "x")), [word], catalogue)


def test_sides_are_told_apart_by_their_names():
    assert command.name_of("runs/demo", ["runs/demo"]) == "demo"
    words = ["runs/a/best", "runs/b/best"]
    assert [command.name_of(word, words) for word in words] == ["a/best", "b/best"]
    assert command.run_of("runs/a/checkpoints/40").as_posix() == "runs/a"
