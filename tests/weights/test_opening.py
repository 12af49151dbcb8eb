"""Where models come from: published files with their terms, tokenizers and labels; runs, folders and the hub.

The files are small ones of the published layout, written without PyTorch (weights/torch_writer.py). Other tests take
them from here.
"""

import functools
import hashlib
import math
import zipfile

import huggingface_hub
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.config import complete, defaults
from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.training import checksum
from mammoclip_jax.weights import card, folder, names, opening, torch_writer
from mammoclip_jax.weights.layouts import downstream, mammo_clip
from mammoclip_jax.weights.naming import abstract, write

HEIGHT, WIDTH, DIM, ROWS = 64, 48, 16, 300
FEATURES = {"b0": 1280, "b2": 1408}
TEXT_WIDTH = 128
TEXT = {
    "bert": dict(
        vocab_size=ROWS,
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=256,
    ),
    "modernbert/mammo_fm": dict(
        vocab_size=ROWS,
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        final_norm=False,
    ),
}
LOGIT_SCALE = np.float32(math.log(1 / 0.07) + 0.3)
NOWHERE = "/nowhere/Bio_ClinicalBERT"  # not to ask the hub for a tokenizer
CONFIG = {
    "base": {"mean": 0.25, "std": 0.5},
    "model": {"text_encoder": {"pooling": "bos"}},
    "tokenizer": {"pretrained_model_name_or_path": NOWHERE},
}


def shrink(monkeypatch):
    """Images of 64 x 48 for the published 1520 x 912."""
    for module in (mammo_clip, downstream):
        monkeypatch.setattr(module, "PREPROCESSING", mammo_clip.PREPROCESSING | {"height": HEIGHT, "width": WIDTH})


def random_array(path, shape, random):
    """Such that activations keep their size from layer to layer."""
    kind = path.rpartition("/")[2]
    if kind in ("scale", "var"):
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    inputs = math.prod(shape[:2] if "depthwise" in path else shape[:-1])
    deviation = inputs**-0.5 if kind == "kernel" else 0.1
    return (deviation * random.standard_normal(shape)).astype(np.float32)


def encoder_state(name, options, channels=0, seed=0):
    """A random state dict of one encoder, with the keys of this naming."""
    naming, random = names.naming(name), np.random.default_rng(seed)
    variables = {
        path: random_array(path, leaf.shape, random) for path, leaf in abstract(naming, options, channels).items()
    }
    return write(naming, unflatten_dict(variables, sep="/"), options)


@functools.cache
def published_state(variant="b0", text="bert", projection="linear"):
    """A random state dict with the keys of the published trainer; copy it before changing it."""
    random = np.random.default_rng(2)

    def array(*shape):
        return (random.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    prefix = "text_encoder." if text.startswith("modernbert") else "text_encoder.text_encoder."
    state = {
        f"image_encoder.{key}": value
        for key, value in encoder_state("efficientnet/lukemelas", {"variant": variant}, 3).items()
    }
    state |= {prefix + key: value for key, value in encoder_state(text, TEXT[text], seed=1).items()}
    for name, width in (("image_projection", FEATURES[variant]), ("text_projection", TEXT_WIDTH)):
        state |= {f"{name}.projection.weight": array(DIM, width), f"{name}.projection.bias": array(DIM)}
        if projection == "mlp":
            state |= {
                f"{name}.fc.weight": array(DIM, DIM),
                f"{name}.fc.bias": array(DIM),
                f"{name}.layer_norm.weight": array(DIM),
                f"{name}.layer_norm.bias": array(DIM),
            }
    return state | {"logit_scale": np.asarray(LOGIT_SCALE)}


def published_file(path, state, **more):
    """The file that the published trainer saves around a state dict."""
    moments = {0: {"step": 7.0, "exp_avg": np.zeros(3, np.float32)}}
    torch_writer.write(
        path,
        {
            "model": state,
            "optimizer": {"state": moments, "param_groups": [{"lr": 5e-5}]},
            "scheduler": {"last_epoch": 3},
            "config": CONFIG,
            "epoch": 7,
            "train_loss": 1.5,
        }
        | more,
    )
    return path


@functools.cache
def classifier_state(classes=2):
    random = np.random.default_rng(3)
    head = "classifier.classification_head."
    state = {key: value for key, value in published_state().items() if key.startswith("image_encoder.")}
    return state | {
        head + "weight": random.normal(0, 0.1, (classes, FEATURES["b0"])).astype(np.float32),
        head + "bias": random.normal(0, 0.1, classes).astype(np.float32),
    }


def classifier_file(path, classes=2):
    """Of the published classifier: {"model", "auroc", "epoch", ...}."""
    torch_writer.write(path, {"model": classifier_state(classes), "epoch": 3, "auroc": 0.8, "predictions": None})
    return path


def tokenizer_file(path):
    """A tokenizer.json of fewer tokens than the text encoder has rows."""
    Tokenize(train_wordpiece(["a mass in the left breast", "no mass"], 200)).save(path)
    return path


def run_folder(workdir, variables, meta, step=5):
    """The last checkpoint of a training run, as training/checkpoint.py has it."""
    state = {
        "step": np.int32(step),
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
        "opt_state": {},
        "ema": None,
        "key": np.zeros(2, np.uint32),
    }
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))
    checksum.write(workdir / "checkpoints" / str(step))
    return workdir


def model_folder(out, imported):
    folder.write(
        out,
        imported.variables,
        imported.meta,
        card=card.render(imported.meta, parameters=folder.counts(imported.variables)),
    )
    return out


def assert_same(ours, theirs):
    """Bit for bit, path for path."""
    ours, theirs = (flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path, strict=True)


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return published_file(tmp_path_factory.mktemp("published") / "b0-model-best-epoch-7.tar", published_state())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_file(tmp_path_factory.mktemp("words") / "tokenizer.json")


def test_a_published_file_in_our_terms(file):
    imported = opening.import_weights(file)
    meta = imported.meta
    assert (imported.layout, meta["kind"], meta["step"]) == ("mammo_clip", "dual_encoder", 7)
    assert meta["config"]["image"] == {"mean": 0.25, "std": 0.5, "channels": 3, "intensity": "minmax"}
    assert meta["config"]["model"]["image"] == {"name": "efficientnet", "variant": "b0"}
    assert meta["preprocessing"]["height"] == HEIGHT and meta["config"]["data"] == {"text_length": 256}
    assert {key for key in imported.unused if not key.endswith("num_batches_tracked")} == {
        f"text_encoder.text_encoder.pooler.dense.{kind}" for kind in ("weight", "bias")
    }
    assert set(imported.variables["params"]) == {
        "image_encoder",
        "text_encoder",
        "image_projection",
        "text_projection",
        "logit_scale",
    }
    assert meta["provenance"]["notes"] == imported.notes and "data" in meta["provenance"]


def test_the_licence_is_presumed_unless_it_is_stated(file):
    imported = opening.import_weights(file)
    (entry,) = imported.meta["provenance"]["licences"]
    assert entry == {
        "weights": "Mammo-CLIP pretraining checkpoint",
        "licence": "mammo_clip",
        "stated": False,
        "title": "CC BY-NC-SA 4.0 (Mammo-CLIP)",
        "layout": "mammo_clip",
        "file": "b0-model-best-epoch-7.tar",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert any("taken to be" in note and "--licence" in note for note in imported.notes)
    stated = opening.import_weights(file, licence="CC BY 4.0", origin="shawn24/Mammo-CLIP")
    (entry,) = stated.meta["provenance"]["licences"]
    assert (entry["licence"], entry["stated"], entry["weights"]) == ("cc-by-4.0", True, "shawn24/Mammo-CLIP")
    assert stated.meta["config"]["name"] == "shawn24/Mammo-CLIP"
    assert not any("taken to be" in note for note in stated.notes)


def test_without_its_tokenizer_token_ids_are_embedded_and_texts_refused(file):
    imported = opening.import_weights(file)
    assert imported.meta["tokenizer"] is None
    assert any(NOWHERE in note and "embed_tokens" in note and "--tokenizer" in note for note in imported.notes)
    model = loading.load(file, batch_size=8)
    with pytest.raises(UserError, match="without their tokenizer.*--tokenizer.*embed_tokens"):
        model.embed_text(["a mass"])
    ids = np.random.default_rng(0).integers(0, ROWS, (3, 20))
    mask = np.arange(20) < np.array([[20], [9], [1]])
    vectors = model.embed_tokens(ids, mask)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    # 1e-5: other shapes of the same products add up in another order.
    np.testing.assert_allclose(model.embed_tokens(ids[1:, :12], mask[1:, :12]), vectors[1:], atol=1e-5)


def test_the_tokenizer_that_was_given_or_lies_beside_the_weights(file, tokenizer, tmp_path):
    expected = Tokenize.from_json(opening.import_weights(file, tokenizer=str(tokenizer)).meta["tokenizer"])
    assert expected.vocab_size <= ROWS
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "model.pth").write_bytes(file.read_bytes())
    tokenizer_file(folder / "tokenizer.json")
    imported = opening.import_weights(folder)
    assert Tokenize.from_json(imported.meta["tokenizer"]).fingerprint == expected.fingerprint
    assert not any("tokenizer" in note for note in imported.notes)
    assert imported.meta["provenance"]["licences"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_tokenizer_that_was_asked_for_has_to_be_there_and_to_fit(file, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at .*absent.json"):
        opening.import_weights(file, tokenizer=str(tmp_path / "absent.json"))
    words = " ".join(f"{a}{b}x {a}{b}x" for a in "abcdefghijklmnopq" for b in "abcdefghijklmnopqrstuv")
    large = Tokenize(train_wordpiece([words], 600))
    large.save(tmp_path / "large.json")
    with pytest.raises(UserError, match=f"large.json has {large.vocab_size} tokens, the text encoder {ROWS} "):
        opening.import_weights(file, tokenizer=str(tmp_path / "large.json"))


@pytest.mark.parametrize(
    "classes, labels, expected, activation",
    [
        (1, ["mass"], ["mass"], "sigmoid"),
        (2, ["mass", "calcification"], ["mass", "calcification"], "sigmoid"),
        (2, [], ["output_0", "output_1"], "sigmoid"),
        (4, [], ["density_A", "density_B", "density_C", "density_D"], "softmax"),
    ],
)
def test_labels_of_a_classifier(tmp_path, classes, labels, expected, activation):
    file = classifier_file(tmp_path / "c.pth", classes)
    imported = opening.import_weights(file, labels=labels)
    model = imported.meta["config"]["model"]
    assert imported.layout == "mammo_clip_classifier" and imported.meta["kind"] == "classifier"
    assert list(model["labels"]) == expected and model["activation"] == activation
    assert any("does not name its outputs" in note for note in imported.notes) == (not labels)
    np.testing.assert_array_equal(
        imported.variables["params"]["classification_head"]["kernel"],
        classifier_state(classes)["classifier.classification_head.weight"].T,
    )
    with pytest.raises(UserError, match=f"names 3 labels, a, b, c; the file has {classes} outputs"):
        opening.import_weights(file, labels=["a", "b", "c"])


def test_terms_that_our_own_export_wrote_into_a_file_stay(tmp_path):
    """What a model comes from binds the file made of it, whoever reads it; nothing is presumed then."""
    kept = (
        '{"licences": [{"weights": "w", "licence": "mammo_fm", "title": "t", "stated": true}], "overrides": '
        '[{"action": "export"}], "data": {"e": {"licence": "EMBED Research Use Agreement", "real": true}}}'
    )
    file = published_file(tmp_path / "a.tar", published_state(), **{opening.PROVENANCE: kept})
    imported = opening.import_weights(file)
    provenance = imported.meta["provenance"]
    assert [entry["licence"] for entry in provenance["licences"]] == ["mammo_fm", "embed"]
    assert provenance["overrides"] == [{"action": "export"}]
    assert not any("taken to be" in note for note in imported.notes)
    stated = opening.import_weights(file, licence="mit").meta["provenance"]
    assert [entry["licence"] for entry in stated["licences"]] == ["mit", "mammo_fm", "embed"]
    with pytest.raises(UserError, match="broken.tar: its mammoclip_jax_provenance"):
        opening.import_weights(published_file(tmp_path / "broken.tar", published_state(), **{opening.PROVENANCE: "{"}))


def test_files_of_no_known_layout_are_named(tmp_path, file):
    torch_writer.write(tmp_path / "other.pth", {"model": {"trunk.weight": np.zeros(3, np.float32)}})
    with pytest.raises(UserError, match="other.pth: no layout known here has keys like trunk.weight"):
        opening.import_weights(tmp_path / "other.pth")
    with pytest.raises(UserError, match="no layout 'mamo_clip'. Did you mean 'mammo_clip'"):
        opening.import_weights(file, layout="mamo_clip")
    with pytest.raises(UserError, match="epoch-7.tar: no encoder known here"):
        opening.import_weights(file, layout="medclip")


def test_files_that_cannot_be_trusted_or_read_are_refused(tmp_path, file):
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.")
        archive.writestr("x/version", b"3\n")
    with pytest.raises(UserError, match="evil.pth: refused: posix.system"):
        opening.open_weights(tmp_path / "evil.pth")
    (tmp_path / "cut.tar").write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut.tar"):
        opening.open_weights(tmp_path / "cut.tar")
    for path in (tmp_path / "absent.tar", tmp_path / "no" / "such.pth"):
        with pytest.raises(UserError, match=f"{path}: there is no such file or folder"):
            opening.open_weights(path)
        with pytest.raises(UserError, match=f"{path}: there is no such file or folder"):
            opening.import_weights(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: there is no finished checkpoint in it, and no weights"):
        opening.open_weights(tmp_path / "empty")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="begun: no finished checkpoint"):
        opening.open_weights(tmp_path / "begun")


def test_a_name_on_the_hub(monkeypatch, tmp_path, file):
    asked = []

    def download(name, *, local_files_only, allow_patterns):
        asked.append((name, local_files_only))
        raise ConnectionError("not in the cache")

    def ask(api, name, timeout):
        asked.append((name, None))
        raise ConnectionError("Network is unreachable\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    with pytest.raises(UserError, match=r"somebody/model: .*hub could not be asked for it \(Network is unreachable\)"):
        opening.open_weights("hf://somebody/model")
    assert asked == [("somebody/model", True), ("somebody/model", None)]  # the cache, then the hub, once
    with pytest.raises(UserError, match="no such file or folder here, .*name it hf://somebody/model"):
        opening.open_weights("somebody/model")  # it may be a mistyped path
    assert asked.pop() == ("somebody/model", True)
    for name in ("model", "a/b/c", "./a", "/a", "models/b5.tar", "./a/b/c.tar"):
        with pytest.raises(UserError, match="no model on the hub can have that name"):
            opening.open_weights(name)
    assert len(asked) == 2
    # Only a part of it is in the cache, and the hub still out of reach.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(UserError, match="hub could not be asked"):
        opening.open_weights("hf://somebody/model")
    (tmp_path / "model.pth").write_bytes(file.read_bytes())
    _, meta = opening.open_weights("somebody/model")
    assert meta["kind"] == "dual_encoder" and meta["step"] == 7
    assert meta["config"]["name"] == meta["provenance"]["licences"][0]["weights"] == "somebody/model"
    assert opening.import_weights("hf://somebody/model").meta["config"]["name"] == "somebody/model"
    assert opening.import_weights("somebody/model", origin="a letter").meta["config"]["name"] == "a letter"


def test_one_file_of_a_model_on_the_hub(monkeypatch, tmp_path, file):
    """Mammo-CLIP's are in folders of their repository."""
    (tmp_path / "b5.tar").write_bytes(file.read_bytes())
    asked = []

    def download(name, path, *, local_files_only):
        asked.append((name, path, local_files_only))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        return str(tmp_path / "b5.tar")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, name, timeout: None)
    _, meta = opening.open_weights("hf://somebody/model/checkpoints/b5.tar")
    assert asked == [("somebody/model", "checkpoints/b5.tar", True), ("somebody/model", "checkpoints/b5.tar", False)]
    assert meta["provenance"]["licences"][0]["weights"] == "somebody/model/checkpoints/b5.tar"


def test_what_is_of_no_use_is_refused(file, tmp_path):
    with pytest.raises(UserError, match="epoch-7.tar: .*kind dual_encoder, have no use for --labels"):
        opening.import_weights(file, labels=["mass"])
    with pytest.raises(UserError, match="c.pth: .*kind classifier, have no use for --tokenizer"):
        opening.import_weights(classifier_file(tmp_path / "c.pth"), tokenizer="a")
    (tmp_path / "checkpoints").mkdir()
    for place in (model_folder(tmp_path / "m", opening.import_weights(file)), tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=f"{place} is a model of this program already"):
            opening.import_weights(place)


def test_runs_checkpoints_folders_and_files_open_alike(file, tokenizer, tmp_path):
    imported = opening.import_weights(file, tokenizer=str(tokenizer))
    config = imported.meta["config"] | {"train": {"steps": 9}}
    own = {key: value for key, value in imported.meta.items() if key not in ("kind", "step")} | {"config": config}
    run = run_folder(tmp_path / "run", imported.variables, own)
    for place in (run, run / "checkpoints", run / "checkpoints" / "5"):
        variables, meta = opening.open_weights(place)
        assert_same(variables, imported.variables)
        assert (meta["kind"], meta["step"], meta["tokenizer"]) == ("dual_encoder", 5, own["tokenizer"])
        assert meta["config"] == config
    variables, meta = opening.open_weights(model_folder(tmp_path / "folder", imported))
    assert_same(variables, imported.variables)
    assert meta["step"] == 7 and meta["provenance"]["licences"] == own["provenance"]["licences"]
    variables, meta = opening.open_weights(str(file))
    assert_same(variables, imported.variables)


def test_a_config_of_the_published_code_needs_no_field_of_ours(file):
    """What the file does not say has our defaults when the model is built."""
    _, meta = opening.open_weights(file)
    whole = complete(meta["config"])
    assert whole.augment == defaults().augment and whole.image.mean == 0.25 and whole.model.pooling == "bos"
