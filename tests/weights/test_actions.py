"""`python -m mammoclip_jax.weights`: what is imported loads, what is exported comes back, and terms are kept."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import test_layouts_mama as mama_file
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from test_opening import (
    HEIGHT,
    LOGIT_SCALE,
    ROWS,
    WIDTH,
    assert_same,
    classifier_file,
    model_folder,
    published_file,
    published_state,
    run_folder,
    shrink,
    tokenizer_file,
)

from mammoclip_jax import run
from mammoclip_jax.config import complete, defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.models import lora
from mammoclip_jax.weights import __main__ as weights
from mammoclip_jax.weights import opening, stablehlo, torch_writer, weight_files

PATTERN = "text_encoder/.*/query/kernel"
PERMISSION = "written permission of A. Author, 3 May 2026"


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture
def command(monkeypatch):
    """The command as a function of its words and flags; returns the exit status."""

    def call(*arguments):
        values = flags.FlagValues()
        names = ("DEFINE_string", "DEFINE_enum", "DEFINE_list")
        monkeypatch.setattr(
            weights,
            "flags",
            SimpleNamespace(
                FLAGS=values, **{name: functools.partial(getattr(flags, name), flag_values=values) for name in names}
            ),
        )
        weights.define_flags()
        return weights.main(values(["weights", *map(str, arguments)]))

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with b0.tar, b2.tar, fm.tar and tokenizer.json; tests must not change it."""
    place = tmp_path_factory.mktemp("published")
    published_file(place / "b0.tar", published_state())
    published_file(place / "b2.tar", published_state("b2"))
    published_file(place / "fm.tar", published_state(text="modernbert/mammo_fm"))
    tokenizer_file(place / "tokenizer.json")
    return place


def imported(place, name, **options):
    return opening.import_weights(place / name, tokenizer=str(place / "tokenizer.json"), **options)


def own_run(workdir, model, **config):
    """A run that ended with the weights of `model`; its config is whole, and changed by `config`."""
    whole = complete(model.meta["config"])
    with whole.unlocked():
        whole.model.update(config)
    meta = {key: value for key, value in model.meta.items() if key not in ("kind", "step")}
    return run_folder(workdir, model.variables, meta | {"config": json.loads(whole.to_json())})


def test_imported_it_loads_and_embeds_as_the_file_does(command, place, tmp_path, capsys):
    out, figures = tmp_path / "models" / "b0", tmp_path / "figures.json"
    assert (
        command(
            "import",
            place / "b0.tar",
            f"--out={out}",
            f"--tokenizer={place}/tokenizer.json",
            "--origin=shawn24/Mammo-CLIP",
            f"--json={figures}",
        )
        == 0
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    printed = capsys.readouterr().out
    assert "layout mammo_clip" in printed and f"model folder: {out}" in printed and "presumed" in printed
    found = json.loads(figures.read_text())
    assert (found["kind"], found["layout"], found["step"], found["missing"]) == ("dual_encoder", "mammo_clip", 7, [])
    assert found["parameters"]["logit_scale"] == 1 and found["tokenizer"] is True and found["out"] == str(out)
    assert found["licences"] == [
        {
            "layout": "mammo_clip",
            "licence": "mammo_clip",
            "stated": False,
            "title": "CC BY-NC-SA 4.0 (Mammo-CLIP)",
            "weights": "shawn24/Mammo-CLIP",
        }
    ]
    assert "text_encoder.text_encoder.pooler.dense.bias" in found["unused"]
    assert any("taken to be" in note for note in found["notes"])

    direct = imported(place, "b0.tar", origin="shawn24/Mammo-CLIP")
    variables, meta = opening.open_weights(out)
    assert_same(variables, direct.variables)
    assert meta["provenance"]["licences"] == direct.meta["provenance"]["licences"]
    one, other = loading.load(out, batch_size=8), DualEncoder(direct.variables, direct.meta, 7, batch_size=8)
    images = np.random.default_rng(0).integers(0, 255, (2, HEIGHT, WIDTH), dtype=np.uint8)
    np.testing.assert_array_equal(one.embed_image(images), other.embed_image(images))
    np.testing.assert_array_equal(one.embed_text(["a mass", "no mass"]), other.embed_text(["a mass", "no mass"]))


def test_a_stated_licence_and_labels(command, tmp_path):
    file = classifier_file(tmp_path / "c.pth")
    assert (
        command(
            "import",
            file,
            f"--out={tmp_path}/c",
            "--licence=mit",
            "--labels=mass,calcification",
            f"--json={tmp_path}/c.json",
        )
        == 0
    )
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["licences"][0]["licence"] == "mit" and found["licences"][0]["stated"] is True
    assert found["model"]["labels"] == ["mass", "calcification"] and found["kind"] == "classifier"
    assert "mass" in (tmp_path / "c" / "README.md").read_text()


def test_inspect_writes_nothing(command, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(place))
    assert command("inspect", place / "b0.tar") == 0
    printed = capsys.readouterr().out
    assert "image_encoder" in printed and "layout mammo_clip" in printed and os.listdir(tmp_path) == []
    assert sorted(os.listdir(place)) == before
    folder = model_folder(tmp_path / "m", imported(place, "b0.tar"))
    assert command("inspect", place / "b0.tar", "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    assert found["missing"] == [] and "text_encoder.text_encoder.pooler.dense.bias" in found["unused"]
    assert command("inspect", folder, "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    assert found["parameters"]["image_encoder"] > 1_000_000 and found["preprocessing"]["height"] == HEIGHT
    run = own_run(tmp_path / "run", imported(place, "b0.tar"))
    assert command("inspect", run) == 0
    assert "dual_encoder" in capsys.readouterr().out
    with pytest.raises(UserError, match="absent.tar: there is no such file or folder"):
        command("inspect", tmp_path / "absent.tar")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "say one of: import FILE"),
        (["imports", "x"], "say one of"),
        (["import"], "say one of"),
        (["import", "a", "b", "--out=c"], "say one of"),
        (["export", "a", "--out=c"], "say one of"),
        (["inspect"], "say one of"),
        (["import", "a"], "import needs --out"),
        (["export"], "export needs --out"),
        (["export", "--out=c"], "export needs --workdir"),
    ],
)
def test_wrong_words_are_explained(command, words, message):
    with pytest.raises(UserError, match=message):
        command(*words)


def test_errors_end_the_program_with_status_2(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "mammoclip_jax.weights", "import", "x.tar", "--out=y"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "\nerror: x.tar: there is no such file or folder" in f"\n{found.stderr}"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("of", ["run", "folder"])
def test_exported_as_a_folder_it_comes_back(command, place, tmp_path, of):
    model = imported(place, "b0.tar")
    start = own_run(tmp_path / "run", model) if of == "run" else model_folder(tmp_path / "m", model)
    if of == "run":
        (start / "results").mkdir()
        (start / "results" / "metrics.json").write_text(
            json.dumps(
                {"metrics": {"zero_shot/mass/auc": {"value": 0.8125, "low": 0.7, "high": 0.9, "n": 40}}, "protocol": {}}
            )
        )
    out = tmp_path / "out"
    assert command("export", f"--workdir={start}", f"--out={out}", f"--json={tmp_path}/f.json") == 0
    variables, meta = opening.open_weights(out)
    assert_same(variables, model.variables)
    assert meta["tokenizer"] and meta["provenance"]["licences"] == model.meta["provenance"]["licences"]
    assert meta["step"] == (5 if of == "run" else 7) and variables["params"]["logit_scale"] == LOGIT_SCALE
    assert ("0.812" in (out / "README.md").read_text()) == (of == "run")
    assert json.loads((tmp_path / "f.json").read_text())["format"] == "folder"


def test_exported_for_pytorch_it_comes_back_with_its_terms(command, place, tmp_path):
    model = imported(place, "b2.tar", licence="CC BY 4.0")
    start = own_run(tmp_path / "run", model)
    assert command("export", f"--workdir={start}", f"--out={tmp_path}/mine.tar", "--format=torch") == 0
    again = weight_files.read(tmp_path / "mine.tar")
    for key, value in published_state("b2").items():
        if not key.endswith("num_batches_tracked") and ".pooler." not in key:
            np.testing.assert_array_equal(again.state[key], value, err_msg=key, strict=True)
    assert again.state.keys() == published_state("b2").keys()
    back = opening.import_weights(tmp_path / "mine.tar", tokenizer=str(place / "tokenizer.json"))
    assert_same(back.variables, model.variables)
    assert back.meta["provenance"]["licences"] == model.meta["provenance"]["licences"]
    assert command("export", f"--workdir={start}", f"--out={tmp_path}/other.tar", "--format=torch") == 0
    assert (tmp_path / "other.tar").read_bytes() == (tmp_path / "mine.tar").read_bytes()


@pytest.mark.slow
def test_exported_as_stablehlo_it_embeds_the_same(command, place, tmp_path):
    model = imported(place, "b0.tar")
    start = model_folder(tmp_path / "m", model)
    assert (
        command("export", f"--workdir={start}", f"--out={tmp_path}/hlo", "--format=stablehlo", "--platforms=cpu") == 0
    )
    images = np.random.default_rng(0).integers(0, 255, (2, HEIGHT, WIDTH), dtype=np.uint8)
    expected = DualEncoder(model.variables, model.meta, 7, batch_size=8).embed_image(images)
    # 1e-5: products of other shapes add up in another order.
    np.testing.assert_allclose(stablehlo.load_image(tmp_path / "hlo", "cpu")(images), expected, atol=1e-5)


def test_adapters_are_merged(command, place, tmp_path):
    model = imported(place, "b0.tar")
    random = np.random.default_rng(0)
    shapes = flatten_dict(lora.init(model.variables["params"], PATTERN, 2, jax.random.key(0)), sep="/")
    adapters = {path: random.normal(size=value.shape).astype(np.float32) for path, value in shapes.items()}
    params = model.variables["params"] | {lora.ADAPTERS: unflatten_dict(adapters, sep="/")}
    start = own_run(
        tmp_path / "run",
        model._replace(variables=model.variables | {"params": params}),
        lora={"pattern": PATTERN, "rank": 2, "alpha": 8.0},
    )
    assert command("export", f"--workdir={start}", f"--out={tmp_path}/out") == 0
    variables, meta = opening.open_weights(tmp_path / "out")
    assert not meta["config"]["model"]["lora"]
    found, base = (flatten_dict(tree["params"], sep="/") for tree in (variables, model.variables))
    assert found.keys() == base.keys() and len(adapters) == 4  # two kernels
    for path, value in found.items():
        if f"{path}/lora_a" in adapters:
            added = 8.0 / 2 * adapters[f"{path}/lora_a"] @ adapters[f"{path}/lora_b"]
            np.testing.assert_allclose(value, base[path] + added, rtol=1e-5, atol=1e-5)  # the order of the sum
        else:
            np.testing.assert_array_equal(value, base[path], err_msg=path)
    ids = random.integers(0, ROWS, (2, 16))
    whole, plain = (loading.load(path, batch_size=8) for path in (start, tmp_path / "out"))
    np.testing.assert_allclose(plain.embed_tokens(ids, ids >= 0), whole.embed_tokens(ids, ids >= 0), atol=1e-5)


def test_a_mama_file_comes_back_with_its_adapters(command, place, tmp_path, monkeypatch):
    """File, folder, file: not a bit of the weights has changed; a folder for others has the adapters merged."""
    monkeypatch.setitem(mama_file.TEXT, "gpt2", mama_file.TEXT["gpt2"] | {"vocab_size": ROWS})
    state = mama_file.checkpoint("gpt2")[0] | mama_file.mama_heads()
    torch_writer.write(tmp_path / "mama.ckpt", {"state_dict": state, "epoch": 3})
    assert command("import", tmp_path / "mama.ckpt", f"--out={tmp_path}/m", f"--tokenizer={place}/tokenizer.json") == 0
    allowed = f"--override_licence={PERMISSION}"
    start = f"--workdir={tmp_path}/m"
    assert command("export", start, f"--out={tmp_path}/back.ckpt", "--format=torch", allowed) == 0
    again = weight_files.read(tmp_path / "back.ckpt").state
    assert set(again) == set(state) - {"confmat.confmat"}
    for key, value in again.items():
        assert value.tobytes() == np.asarray(state[key]).tobytes(), key
    back = opening.import_weights(tmp_path / "back.ckpt", tokenizer=str(place / "tokenizer.json"))
    assert back.layout == "mama" and back.meta["provenance"]["overrides"][0]["override"] == PERMISSION
    assert_same(back.variables, opening.open_weights(tmp_path / "m")[0])
    assert command("export", start, f"--out={tmp_path}/plain", allowed) == 0
    assert lora.ADAPTERS not in opening.open_weights(tmp_path / "plain")[0]["params"]
    ids = np.arange(2 * 16).reshape(2, 16)
    whole, plain = (loading.load(tmp_path / name, batch_size=8) for name in ("m", "plain"))
    np.testing.assert_allclose(plain.embed_tokens(ids, ids >= 0), whole.embed_tokens(ids, ids >= 0), atol=1e-5)


def test_mammo_fm_is_not_passed_on_without_a_permission(command, place, tmp_path):
    start = model_folder(tmp_path / "fm", imported(place, "fm.tar"))
    for form in ("folder", "torch", "stablehlo"):
        with pytest.raises(UserError, match="Mammo-FM.*no redistribution.*--override_licence"):
            command("export", f"--workdir={start}", f"--out={tmp_path}/out", f"--format={form}")
    with pytest.raises(UserError, match="Mammo-FM"):
        command("export", f"--workdir={start}", f"--out={tmp_path}/out", "--override_licence= ")
    assert os.listdir(tmp_path) == ["fm"]
    assert command("export", f"--workdir={start}", f"--out={tmp_path}/out", f"--override_licence={PERMISSION}") == 0
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    (record,) = document["provenance"]["overrides"]
    assert (record["action"], record["override"]) == ("export", PERMISSION)
    assert record["of"] == ["Mammo-FM pretraining checkpoint"]
    assert PERMISSION in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="Mammo-FM"):  # the permission was for that export, not for all to come
        command("export", f"--workdir={tmp_path}/out", f"--out={tmp_path}/again")


def test_no_training_starts_from_mammo_fm_without_a_permission(place, tmp_path):
    start = model_folder(tmp_path / "fm", imported(place, "fm.tar"))
    fresh, config = imported(place, "fm.tar").variables, defaults()
    meta = {"config": {"image": {}}, "preprocessing": {}, "provenance": {"data": {}}}
    config.warm_start.fm = {"weights": str(start)}
    with pytest.raises(UserError, match="starting another model from.*Mammo-FM.*override"):
        run.start_variables(fresh, config, tmp_path, meta)
    assert not (tmp_path / "warm_start.json").exists() and meta["provenance"] == {"data": {}}
    config.warm_start.fm.override = PERMISSION
    run.start_variables(fresh, config, tmp_path, meta)
    assert meta["provenance"]["overrides"][0]["override"] == PERMISSION
    assert meta["provenance"]["licences"][0]["licence"] == "mammo_fm"


def test_a_single_encoder_and_a_classifier(command, place, tmp_path):
    torch_writer.write(
        tmp_path / "tower.pth",
        {
            key.removeprefix("image_encoder."): value
            for key, value in published_state().items()
            if key.startswith("image_encoder.")
        },
    )
    classifier_file(tmp_path / "c.pth")
    for name, kind in (("tower", "image_encoder"), ("c", "classifier")):
        assert command("import", tmp_path / f"{name}.pth", f"--out={tmp_path}/{name}") == 0
        with pytest.raises(UserError, match=f"this is a {kind}"):
            command("export", f"--workdir={tmp_path}/{name}", f"--out={tmp_path}/out", "--format=stablehlo")
    with pytest.raises(UserError, match=r"no file for a single encoder \(image_encoder\)"):
        command("export", f"--workdir={tmp_path}/tower", f"--out={tmp_path}/out", "--format=torch")
    with pytest.raises(UserError, match="b5 and b2"):
        command("export", f"--workdir={tmp_path}/c", f"--out={tmp_path}/out", "--format=torch")
    assert not (tmp_path / "out").exists()


def test_what_fails_leaves_nothing_half_written(command, place, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    for out, message in (("kept", "thesis.txt"), ("file", "is a file")):
        with pytest.raises(UserError, match=message):
            command(
                "import",
                place / "b0.tar",
                f"--out={tmp_path / out}",
                f"--tokenizer={place}/tokenizer.json",
                f"--json={tmp_path}/f.json",
            )
    start = model_folder(tmp_path / "m", imported(place, "b2.tar"))
    with pytest.raises(UserError, match="kept is a folder: --format=torch writes one file"):
        command("export", f"--workdir={start}", f"--out={tmp_path}/kept", "--format=torch")

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("mammoclip_jax.weights.folder.save_file", full)
    monkeypatch.setattr("mammoclip_jax.weights.torch_writer._write_archive", full)
    for form in ("folder", "torch"):
        with pytest.raises(OSError):
            command(
                "export", f"--workdir={start}", f"--out={tmp_path}/new", f"--format={form}", f"--json={tmp_path}/f.json"
            )
    assert sorted(os.listdir(tmp_path)) == ["file", "kept", "m"] and os.listdir(tmp_path / "kept") == ["thesis.txt"]
    assert (tmp_path / "file").read_text() == "mine"
