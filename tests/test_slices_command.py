"""The command `slices`: from two models and a data set to a page, tables, figures and a repaired classifier."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from shortcut_set import OPTIONS, Language, ShortcutSet, classifier_folder

from mammoclip_jax import provenance
from mammoclip_jax import slices as command
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import members
from mammoclip_jax.evaluation.suite import seen_before
from mammoclip_jax.inference import loading
from mammoclip_jax.weights import folder

FLAGS = dict(
    model="",
    language="dual",
    dataset="set",
    language_dataset="",
    label="mass",
    out="",
    sentences="",
    prompts="",
    captions="",
    hypotheses=["lexicon", "metadata"],
    columns=[],
    known="",
    language_model="",
    language_model_name="",
    language_model_key="",
    send_patient_text=False,
    option=OPTIONS,
    batch_size=64,
    cache="",
    allow_training_patients=False,
    override_licence="",
    config="",
    workdir="",
    json="",
)
load = loading.load


@pytest.fixture(scope="module")
def dataset():
    return ShortcutSet()


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("models") / "classifier", dataset)


@pytest.fixture(scope="module")
def opened(model):
    return load(str(model), batch_size=64)


@pytest.fixture(scope="module")
def language():
    return Language()


@pytest.fixture
def call(dataset, model, opened, language, tmp_path, monkeypatch):
    """The command with some flags; returns its figures."""
    others = {"set": dataset, "mixed": ShortcutSet(shuffled=3, path="mixed")}
    monkeypatch.setattr(Dataset, "open", others.__getitem__)
    models = {"dual": language, str(model): opened}
    monkeypatch.setattr(loading, "load", lambda name, batch_size: models.get(name) or load(name))

    def call(**given):
        out = {"out": str(tmp_path / "out"), "json": str(tmp_path / "figures.json"), "model": str(model)}
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**FLAGS | out | given))
        monkeypatch.setattr(command.sys, "argv", ["slices.py", f"--model={model}", f"--out={tmp_path}/out"])
        assert command.main([]) == 0
        return json.loads((tmp_path / "figures.json").read_text())

    call.models = models
    return call


@pytest.fixture(scope="module")
def whole(dataset, model, opened, language, tmp_path_factory):
    """One run with all there is: (figures, its folder, what it printed)."""
    out, patch = tmp_path_factory.mktemp("whole"), pytest.MonkeyPatch()
    with patch.context() as monkeypatch:
        monkeypatch.setattr(Dataset, "open", lambda name: dataset)
        monkeypatch.setattr(loading, "load", lambda name, batch_size: language if name == "dual" else opened)
        given = dict(model=str(model), out=str(out / "out"), json=str(out / "figures.json"), known="skin_marker")
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**FLAGS | given))
        monkeypatch.setattr(command.sys, "argv", ["slices.py", f"--model={model}", f"--out={out}/out"])
        assert command.main([]) == 0
    return json.loads((out / "figures.json").read_text()), out / "out"


def test_the_shortcut_is_named_and_mended(whole):
    figures, out = whole
    assert figures["slices"][0] == "skin marker" and figures["tests"][0]["verdict"] == "slice"
    assert figures["counts"] | {"sentences": 0} == dict(
        train=240, validation=320, test=320, without_label=0, sentences=0
    )
    gain = figures["metrics"]["shortcut/slices/repaired/skin_marker (true)/worst group_gain"]
    assert gain["low"] > 0 and figures["metrics"]["shortcut/slices/precision_at_10"]["value"] >= 0.5
    for name in ("tests", "sentences", "phrases", "rates", "models", "groups", "fairness"):
        assert (out / "results" / "shortcut" / "slices" / f"{name}.csv").is_file(), name


def test_the_page_says_it_and_keeps_secrets(whole, model):
    figures, out = whole
    page = (out / "slices.html").read_text()
    sections = ["slices", "repair", "fairness", "tests", "sentences", "how"]
    assert re.findall(r'<section id="(\w+)">', page) == sections
    assert "no mass, with skin marker" in page and "Sentences that name it" in page
    assert page.count("decided wrongly</h4>") == page.count("<article") >= 1 and page.count("data:image/jpeg") >= 6
    assert "repaired, mean head" in page and "sensitivity, here" in page and "Precision at 10" in page
    assert "vendor" in page and "calibration" in page and "Computer phantoms" in page
    assert "secret" not in page and str(out.parent) not in page and str(model.parent) not in page
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page).lower().replace("finance", "")


def test_who_is_in_a_slice_is_tabulated(whole, dataset):
    """As many as the rates are of, of its class alone; by the names of the data set's images."""
    figures, out = whole
    folder = out / "results" / "shortcut" / "slices"
    table, rates = pd.read_csv(folder / "images.csv"), pd.read_csv(folder / "rates.csv")
    slices = [column for column in table if column not in members.SHARED]
    assert len(slices) == sum(row["verdict"] == "slice" for row in figures["tests"]) and slices[0].endswith(
        "with skin marker"
    )
    test = table[table["part"] == "test"]
    assert len(table) == 640 and set(table["image"]) <= set(dataset.index["image"])
    row = rates[(rates["slice"] == "skin marker present, class 0") & (rates["figure"] == "specificity")]
    row = row[row["model"] == "classifier"].iloc[0]
    inside = test[test["no mass, with skin marker"] == 1]
    assert (inside["truth"] == 0).all() and len(inside) == row["n"]
    assert inside["right"].mean() == pytest.approx(row["value"])


def test_the_repaired_head_is_what_was_measured(whole, dataset, opened):
    """Exported, it loads and gives the scores that the page has figures of; terms and patients of both parents go along."""
    _, out = whole
    old, new = opened, load(str(out / "repaired"), batch_size=64)
    rows = np.flatnonzero(dataset.index["split"] == "test")[:32]
    images = np.stack([dataset.read(row) for row in rows])
    weights, bias = new.head("mass")
    expected = expit(old.image_features(images).astype(np.float64) @ weights + bias)
    got = new.classify(images)
    np.testing.assert_allclose(got[:, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], old.classify(images)[:, 0])  # the other label is as it was
    assert not np.allclose(got[:, 1], old.classify(images)[:, 1], atol=0.05)
    titles = {entry["title"] for entry in new.provenance["licences"]}
    assert {"MIT"} <= titles and [parent["kind"] for parent in new.provenance["parents"]] == [
        "classifier",
        "dual_encoder",
    ]
    card = (out / "repaired" / folder.CARD).read_text()
    assert "balanced over the four groups" in card and "skin marker" in card
    seen = provenance.patients_in(new.trained_on)
    parts = {split: dataset.index[dataset.index["split"] == split] for split in ("train", "val", "test")}
    known = {split: np.isin(provenance.patients(dataset, part), seen) for split, part in parts.items()}
    assert known["train"].all() and known["val"].all() and not known["test"].any()
    with pytest.raises(UserError, match="trained on"):
        seen_before(new, "shortcut", dataset, {"split": "val"}, False)


def test_again_it_computes_no_feature_and_says_the_same(whole, call, language):
    figures, out = whole
    before = language.calls
    again = call(known="skin_marker", cache=str(out / "features"))
    assert language.calls == before
    assert again["tests"] == figures["tests"] and again["metrics"] == figures["metrics"]


def test_two_folders_are_joined_by_image(call, whole, caplog):
    """In another order and with four images less in the one; a bank from a file, and no metadata."""
    figures = call(language_dataset="mixed", hypotheses=["lexicon"])
    counts = figures["counts"]
    assert (counts["joined"], counts["only_first"], counts["only_second"]) == (876, 4, 0)
    assert counts["train"] + counts["validation"] + counts["test"] == 876
    assert figures["slices"][0] == "skin marker" and {row["source"] for row in figures["tests"]} <= {
        "lexicon",
        "n-gram",
    }


def test_metadata_alone_needs_no_dual_encoder(call, tmp_path):
    figures = call(language="", hypotheses=["metadata"], columns=["skin_marker"])
    assert figures["slices"] and figures["slices"][0].startswith("skin_marker=")
    assert {row["source"] for row in figures["tests"]} == {"column"} and "sentences" not in figures["counts"]
    repaired = load(figures["repaired"])
    assert [parent["name"] for parent in repaired.provenance["parents"]] == ["classifier"]
    assert "No sentences were compared" in (tmp_path / "out" / "slices.html").read_text()


def test_nothing_found_is_a_result(call, tmp_path):
    """The columns that have nothing to do with it: no slice, no repaired model, and exit status 0."""
    figures = call(language="", hypotheses=["metadata"])
    assert figures["slices"] == [] and figures["repaired"] == "" and not (tmp_path / "out" / "repaired").exists()
    page = (tmp_path / "out" / "slices.html").read_text()
    assert "No slice found" in page and "Nothing was repaired" in page


def test_terms_of_the_dual_encoder_bind_the_repair(call):
    call.models["dual"] = Language("mammo_fm")
    with pytest.raises(UserError, match="finding what another model learns from with"):
        call()


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(model=""), "give --model; or --config"),
        (dict(language=""), "lexicon needs --language"),
        (dict(hypotheses=["lexicons"]), "Did you mean 'lexicon'"),
        (dict(hypotheses=["metadata"]), "--language is of no use"),
        (dict(hypotheses=["lexicon", "model"]), "go together"),
        (
            dict(hypotheses=["lexicon", "model"], language_model="http://x", send_patient_text=True),
            "language_model_name",
        ),
        (dict(language_model="folder"), "go together"),
        (dict(option=["topp=3"]), "no option 'topp'.*Did you mean 'top'"),
        (dict(option=["least=few"]), "must be a number"),
        (dict(option=["known=clip"]), "write --known"),
        (dict(label="cancer"), "no label of the model 'cancer'|cancer"),
        (dict(known="clip"), "no image has a label 'clip'"),
        (dict(sentences="nowhere.txt"), "cannot be read as text"),
        (dict(captions="nothing"), "no caption template 'nothing'"),
        (dict(language="set", model="dual"), "--model is to be a classifier"),
        (dict(config="nowhere.py", model=""), "--config makes it all"),
    ],
)
def test_wrong_flags_are_said(call, given, message):
    call.models["set"] = call.models["dual"]
    with pytest.raises(UserError, match=message):
        call(**given)


def test_the_sentences_may_be_others(call, tmp_path):
    (tmp_path / "mine.txt").write_text(
        "There is a surgical clip. No clip is seen.\nScar marker over the breast.\nNegative.\n"
    )
    values = SimpleNamespace(**FLAGS | dict(sentences=str(tmp_path / "mine.txt"), prompts="phantom"))
    bank = command.bank_of(values, ShortcutSet())
    assert "Scar marker over the breast." in bank and "Negative." not in bank and len(bank) >= 20
    assert bank == sorted(set(bank)) and any("mass" in text for text in bank)
    captions = command.bank_of(SimpleNamespace(**FLAGS | dict(captions="mama")), ShortcutSet())
    assert any("CC view" in text for text in captions)


def test_a_config_trains_both_and_says_the_rest(monkeypatch, tmp_path):
    started, codes = [], [0, 0]
    run = lambda arguments: started.append(arguments[2:]) or SimpleNamespace(returncode=codes[len(started) - 1])
    monkeypatch.setattr(command.subprocess, "run", run)
    path = str(Path(__file__).parent.parent / "configs" / "phantom_slices.py")
    values = SimpleNamespace(**FLAGS | dict(language="", dataset="", config=f"{path}:none", workdir=str(tmp_path)))
    command.train_both(values)
    assert started == [
        ["mammoclip_jax.pretrain", f"--config={path}:language", f"--workdir={tmp_path}/dual_encoder"],
        [
            "mammoclip_jax.finetune",
            f"--config={path}:none",
            f"--workdir={tmp_path}/classifier",
            f"--config.warm_start.image.weights={tmp_path}/dual_encoder",
        ],
    ]
    assert (values.label, values.known, values.out) == ("mass", "skin_marker", f"{tmp_path}/slices")
    assert values.dataset == f"{tmp_path}/classifier/data/phantom"
    started.clear()
    codes[0] = 75
    with pytest.raises(UserError, match="the same command goes on with it"):
        command.train_both(SimpleNamespace(**FLAGS | dict(language="", dataset="", config=path, workdir=str(tmp_path))))
    for given, message in (
        (dict(config=path, workdir=""), "--config needs --workdir"),
        (dict(config="nowhere.py", workdir="w"), "there is no file nowhere.py"),
        (dict(config=str(Path(path).with_name("demo.py")), workdir="w"), "does not name the variant"),
    ):
        with pytest.raises(UserError, match=message):
            command.train_both(SimpleNamespace(**FLAGS | dict(language="", dataset="") | given))
