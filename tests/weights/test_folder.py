"""A model folder gives back what was written, bit for bit; holds nothing of this machine; and says what is wrong."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from mammoclip_jax import provenance
from mammoclip_jax.config import complete, defaults
from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import folder

TEXTS = ["a mass in the left breast", "no mass", "Größe: 3 mm"]
SECRETS = (
    "/home/somebody/hospital_a/shards",
    "/mnt/archive/vocab.json",
    "~/exams/patient_7",
    "/data/prompts/own.json",
    "/scratch/old_run",
    "/home/somebody/weights.tar",
    "C:\\Users\\somebody\\letter.pdf",
)


@pytest.fixture(scope="module")
def variables():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 4)).astype(np.float32)
    kernel[0, 0], kernel[0, 1] = np.nan, -0.0
    return {
        "params": {
            "image_encoder": {
                "conv": {"kernel": kernel, "turned": kernel.T},
                "half": random.normal(size=(2, 3)).astype(np.float16),
            },
            "text_encoder": {"embedding": random.normal(size=(5, 2)).astype(ml_dtypes.bfloat16)},
            "logit_scale": np.float32(2.6593),
        },
        "batch_stats": {"image_encoder": {"bn": {"mean": np.zeros(4, np.float32)}}},
    }


@pytest.fixture(scope="module")
def meta():
    config = defaults()
    shards, vocabulary, exam, prompts, old, weights, letter = SECRETS
    config.name = "demo"
    config.data.folders = {"hospital_a": shards}
    config.data.tokenizer = vocabulary
    config.predict.exam = exam
    config.predict.prompts = prompts
    config.warm_start = {"old": {"weights": old}}
    config.compilation_cache = "/home/somebody/cache"
    config.model.image.update(name="resnet", variant="18")
    config.model.lora.update(pattern="text_encoder/.*/(query|value)/kernel")
    return {
        "kind": "dual_encoder",
        "step": 12,
        "config": config.to_dict(),
        "tokenizer": Tokenize(train_wordpiece(TEXTS, 200)).to_json(),
        "preprocessing": {"geometry": "fit", "height": 96, "width": 64},
        "trained_on": "AAAAAAAAAAE=",
        "provenance": {
            "data": {"phantom": {"licence": "CC0-1.0", "counts": {"images": 8}}},
            "licences": [{"weights": "https://huggingface.co/a/b", "licence": "mit", "title": "MIT", "stated": True}],
            "overrides": [{"override": f"see {letter}, page 1"}],
            "notes": [f"Read from {weights}."],
        },
    }


@pytest.fixture
def out(tmp_path, variables, meta):
    return folder.write(tmp_path / "models" / "demo", variables, meta, card=f"# Demo\n\nMade from {SECRETS[5]}.\n")


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(value)


def test_arrays_come_back_bit_for_bit(out, variables):
    step, found, _ = folder.read(out)
    assert step == 12
    written, read = dict(flat(variables)), dict(flat(found))
    assert written.keys() == read.keys()
    for name, value in written.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
        assert read[name].tobytes() == value.tobytes(), name


def test_others_may_read_what_the_umask_lets_them(tmp_path, variables, meta):
    before = os.umask(0o027)
    try:
        out = folder.write(tmp_path / "m", variables, meta, card="")
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}


def test_any_program_reads_the_arrays(out, variables):
    arrays = load_file(out / "model.safetensors")
    np.testing.assert_array_equal(
        arrays["params/image_encoder/conv/turned"], variables["params"]["image_encoder"]["conv"]["kernel"].T
    )
    document = json.loads((out / "config.json").read_text())
    assert document["parameters"] == {"image_encoder": 30, "text_encoder": 10, "logit_scale": 1}


def test_meta_comes_back_without_what_only_the_run_needs(out, meta):
    _, _, found = folder.read(out)
    for key in ("kind", "step", "preprocessing", "tokenizer", "trained_on"):
        assert found[key] == meta[key], key
    for section in ("model", "image"):
        assert found["config"][section] == json.loads(json.dumps(meta["config"][section])), section
    assert found["config"]["data"] == {"text_length": 256, "leave_out": []}
    scores = {"mirror": False, "windows": 0.0, "pool": "", "calibrated": False, "percentile": False}
    assert found["config"]["predict"] == {"stage": "", "method": ""} | scores
    assert set(found["config"]) == {"name", "seed", "image", "model", "data", "predict", "task"}
    assert found["provenance"]["data"] == meta["provenance"]["data"]
    assert found["provenance"]["licences"] == meta["provenance"]["licences"]


def test_what_a_classifier_scores_goes_along(tmp_path, variables, meta):
    """Else an exported density classifier has nothing to score, and one of exams is scored by image."""
    task = defaults().task.to_dict() | {"kind": "classifier", "label": "density", "unit": "exam", "folds": 5, "fold": 2}
    out = folder.write(
        tmp_path / "m", variables, meta | {"kind": "classifier", "config": meta["config"] | {"task": task}}, card=""
    )
    kept = folder.read(out)[2]["config"]["task"]
    assert kept == {"kind": "classifier", "label": "density", "unit": "exam", "folds": 5, "fold": 2, "fraction": 1.0}
    assert complete(folder.read(out)[2]["config"]).task.label == "density"


def test_named_prompts_are_kept(tmp_path, variables, meta):
    config = meta["config"] | {"predict": {"prompts": "phantom", "stage": "s", "method": "m", "exam": "e"}}
    written = folder.write(tmp_path / "m", variables, meta | {"config": config}, card="")
    assert folder.read(written)[2]["config"]["predict"] == {"prompts": "phantom", "stage": "s", "method": "m"}


def test_no_path_of_this_machine_goes_along(out):
    for file in ("config.json", "README.md"):
        text = (out / file).read_text()
        for secret in ("somebody", "hospital_a", "archive", "patient_7", "scratch", "own.json", "Users", out.parent):
            assert str(secret) not in text, (file, secret)
    provenance = folder.read(out)[2]["provenance"]
    assert provenance["notes"] == ["Read from weights.tar."]
    assert provenance["overrides"] == [{"override": "see letter.pdf, page 1"}]
    assert (out / "README.md").read_text() == "# Demo\n\nMade from weights.tar.\n"


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/emilyalsentzer/Bio_ClinicalBERT",
        "mass/calcification",
        "1 / 2",
        "25/11/2026",
        "a/b/c",
        "CC BY-NC-SA 4.0",
        "params/image_encoder/conv/kernel",
        "L/R and CC/MLO",
    ],
)
def test_what_is_no_path_stays(text):
    assert provenance.without_paths({"a": [f"see {text}."]}) == {"a": [f"see {text}."]}


@pytest.mark.parametrize(
    "text, left",
    [
        ("/a/b/c.tar", "c.tar"),
        ("in /a/b/, where", "in b, where"),
        ("('/a/b')", "('b')"),
        ("file:///a/b/c", "c"),
        ("~/a.tar", "a.tar"),
        ("D:\\x\\y.pth and /u/v", "y.pth and v"),
        ("dir=/a/b", "dir=b"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, left):
    assert provenance.without_paths(text) == left


def test_the_tokenizer_is_a_file_for_everybody(out, meta):
    ours, theirs = Tokenize.from_json(meta["tokenizer"]), tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in TEXTS:
        ids, mask = ours.encode([text], 32)
        assert theirs.encode(text).ids == ids[0][mask[0]].tolist()
    entry = json.loads((out / "config.json").read_text())["tokenizer"]
    assert entry == {"file": "tokenizer.json", "pad_token": "[PAD]", "fingerprint": ours.fingerprint}


def test_a_separator_of_sentences_comes_with_the_tokenizer(tmp_path, variables, meta):
    tokens = Tokenize(train_wordpiece(TEXTS, 200)).extended(separator="[SEP]")
    out = folder.write(tmp_path / "m", variables, meta | {"tokenizer": tokens.to_json()}, card="")
    assert json.loads((out / "config.json").read_text())["tokenizer"] == {
        "file": "tokenizer.json",
        "pad_token": "[PAD]",
        "separator": "[SEP]",
        "fingerprint": tokens.fingerprint,
    }
    assert folder.read(out)[2]["tokenizer"] == tokens.to_json()


def test_an_encoder_without_tokenizer_and_statistics(tmp_path, meta):
    variables = {"params": {"image_encoder": {"kernel": np.ones(2, np.float32)}}, "batch_stats": {}}
    bare = {
        "kind": "image_encoder",
        "step": 0,
        "tokenizer": None,
        "provenance": {},
        "preprocessing": {},
        "trained_on": None,
        "config": {"name": "", "image": {}, "model": {"image": {"name": "resnet"}}, "data": {"text_length": 0}},
    }
    out = folder.write(tmp_path / "m", variables, bare, card="")
    assert not (out / "tokenizer.json").exists()
    step, found, read = folder.read(out)
    assert (step, read) == (0, bare)
    assert found["batch_stats"] == {} and dict(flat(found)).keys() == {"params/image_encoder/kernel"}


def test_an_earlier_export_makes_way_and_nothing_else(out, variables, meta):
    folder.write(out, variables, meta | {"step": 13}, card="new")
    assert folder.read(out)[0] == 13 and (out / "README.md").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["demo"]  # nothing of the writing is left
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        folder.write(out, variables, meta, card="")
    assert folder.read(out)[0] == 13


def test_folders_of_others_are_not_overwritten(tmp_path, variables, meta):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="config.json, model.safetensors and is no earlier export"):
        folder.write(tmp_path, variables, meta, card="")
    with pytest.raises(UserError, match="is a file"):
        folder.write(tmp_path / "config.json", variables, meta, card="")
    with pytest.raises(UserError, match="looks like a folder of the Hugging Face hub.*weights import"):
        folder.read(tmp_path)
    assert not folder.is_folder(tmp_path)


def test_an_interrupted_writing_leaves_the_earlier_one(out, variables, meta):
    with pytest.raises(TypeError):
        folder.write(out, variables, meta | {"step": 14, "provenance": {"what": object()}}, card="")
    assert folder.read(out)[0] == 12
    assert [path.name for path in out.parent.iterdir()] == ["demo"]
    with pytest.raises(UserError, match="dual_encodr"):
        folder.write(out.parent / "new", variables, meta | {"kind": "dual_encodr"}, card="")
    assert not (out.parent / "new").exists()


def test_damage_is_found(out):
    weights = out / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        folder.read(out)
    weights.unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        folder.read(out)
    assert folder.is_folder(out)


def test_a_changed_tokenizer_is_found(out):
    with open(out / "tokenizer.json", "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        folder.read(out)


def test_a_cut_or_missing_config_is_found(out):
    config = out / "config.json"
    config.write_text(config.read_text()[:100])
    assert folder.is_folder(out)
    with pytest.raises(UserError, match="config.json is missing or damaged"):
        folder.read(out)
    config.write_text('{"format": "mammoclip_jax", "format_version": 1, "kind": "dual_encoder"}')
    with pytest.raises(UserError, match="lacks step, config, preprocessing"):
        folder.read(out)


def test_a_newer_version_is_refused(out):
    document = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(document | {"format_version": 2}))
    with pytest.raises(UserError, match="format version 2.*update"):
        folder.read(out)


def test_a_folder_is_all_that_use_needs(tmp_path, meta):
    import jax

    import mammoclip_jax
    from mammoclip_jax import models
    from mammoclip_jax.inference.dual_encoder import DualEncoder

    config = defaults()
    config.image.channels, config.data.text_length, config.model.dim = 1, 16, 8
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    meta = meta | {"config": config.to_dict()}
    module = models.build(config.model, Tokenize.from_json(meta["tokenizer"]).vocab_size)
    ids = np.zeros((1, 1, 4), np.int32)
    variables = jax.jit(lambda *x: module.init(*x, train=False))(
        jax.random.key(0), np.zeros((1, 1, 96, 64, 1), np.float32), ids, ids == 0
    )
    model = DualEncoder(variables, meta, 12)
    loaded = mammoclip_jax.load(folder.write(tmp_path / "m", variables, meta, card=""))
    images = np.random.default_rng(0).integers(0, 255, (2, 96, 64), dtype=np.uint8)
    assert (loaded.step, loaded.preprocessing) == (12, meta["preprocessing"])
    np.testing.assert_array_equal(loaded.embed_image(images), model.embed_image(images))
    np.testing.assert_array_equal(loaded.embed_text(TEXTS), model.embed_text(TEXTS))


def test_other_folders_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        folder.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="it has no config.json"):
        folder.read(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="the folder of a run"):
        folder.read(tmp_path)
    assert not folder.is_folder(tmp_path)
