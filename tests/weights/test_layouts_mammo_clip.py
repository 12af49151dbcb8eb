"""Mammo-CLIP's and Mammo-FM's pretraining checkpoints: each array to its place, the config's choices, and the way back.

Live (parity): modules of PyTorch in the published layout give the same vectors of images and texts.
"""

import sys
import types

import jax
import numpy as np
import pytest
from live import library
from test_opening import (
    CONFIG,
    DIM,
    HEIGHT,
    LOGIT_SCALE,
    ROWS,
    TEXT_WIDTH,
    WIDTH,
    assert_same,
    published_file,
    published_state,
    shrink,
    tokenizer_file,
)

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights import layouts, opening, torch_writer, weight_files
from mammoclip_jax.weights.unpickle import Opaque

BERT, MODERN = "text_encoder.text_encoder.", "text_encoder."


def read(state, name="mammo_clip", config=CONFIG):
    return layouts.layout(name).read(state, {"config": config}, None)


def meta(model):
    return {"config": {"model": model.model, "image": model.image}, "provenance": {}}


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def test_arrays_come_to_their_places():
    state = published_state()
    model = read(state)
    assert model.kind == "dual_encoder" and layouts.detect(state) == "mammo_clip"
    params, statistics = model.variables["params"], model.variables["batch_stats"]
    for name in ("image_projection", "text_projection"):
        np.testing.assert_array_equal(params[name]["dense"]["kernel"], state[f"{name}.projection.weight"].T)
        np.testing.assert_array_equal(params[name]["dense"]["bias"], state[f"{name}.projection.bias"])
    np.testing.assert_array_equal(
        params["image_encoder"]["block03"]["depthwise"]["kernel"][:, :, 5],
        state["image_encoder._blocks.3._depthwise_conv.weight"][5, 0],
    )
    np.testing.assert_array_equal(
        statistics["image_encoder"]["head_bn"]["var"], state["image_encoder._bn1.running_var"]
    )
    np.testing.assert_array_equal(
        params["text_encoder"]["embeddings"]["word_embeddings"]["embedding"],
        state[f"{BERT}embeddings.word_embeddings.weight"],
    )
    assert params["logit_scale"].dtype == np.float32 and params["logit_scale"].shape == ()
    assert params["logit_scale"] == LOGIT_SCALE
    arrays = len(jax.tree.leaves(model.variables))
    assert arrays + len(model.unused) == len(state)
    assert model.model["dim"] == DIM and model.model["projection"]["kind"] == "linear"
    assert model.model["text"]["vocab_size"] == ROWS and model.model["text"]["hidden_size"] == TEXT_WIDTH


def test_logit_scale_of_one_axis_or_half_precision():
    state = published_state()
    assert read(state | {"logit_scale": np.array([2.5], np.float16)}).variables["params"]["logit_scale"] == 2.5


def test_mlp_projections():
    state = published_state(projection="mlp")
    model = read(state)
    assert model.model["projection"]["kind"] == "mlp"
    module = model.variables["params"]["text_projection"]
    np.testing.assert_array_equal(module["hidden"]["kernel"], state["text_projection.fc.weight"].T)
    np.testing.assert_array_equal(module["norm"]["scale"], state["text_projection.layer_norm.weight"])
    with pytest.raises(UserError, match="no image_projection.layer_norm.weight"):
        read(without(state, "image_projection.layer_norm.weight"))


def test_the_files_config_is_followed_as_far_as_it_goes():
    state = published_state()
    model = read(state)
    assert (model.model["pooling"], model.image["mean"], model.image["std"]) == ("bos", 0.25, 0.5)
    strange = [
        None,
        Opaque("omegaconf.dictconfig.DictConfig"),
        {"model": Opaque("omegaconf.ListConfig"), "base": None},
        {"model": {"text_encoder": [1]}, "tokenizer": "a"},
    ]
    for config in strange:
        model = read(state, config=config)
        assert model.model["pooling"] == "eos" and model.image["mean"] == 0.3089279
        assert model.image["std"] == 0.25053555408335154 and model.tokenizer == "emilyalsentzer/Bio_ClinicalBERT"
    with pytest.raises(UserError, match="text pooling 'cls'.*eos, bos, mean"):
        read(state, config={"model": {"text_encoder": {"pooling": "cls"}}})


def test_mammo_fm_is_told_apart_and_leaves_the_last_norm_out():
    state = published_state(text="modernbert/mammo_fm")
    assert layouts.detect(state) == "mammo_fm" and layouts.layout("mammo_fm").licence == "mammo_fm"
    model = read(state, "mammo_fm")
    assert model.model["text"]["name"] == "modernbert" and model.model["text"]["final_norm"] is False
    assert model.tokenizer == "answerdotai/ModernBERT-base" and "LayerNorm" in " ".join(model.notes)
    assert f"{MODERN}final_norm.weight" in model.unused
    embeddings = model.variables["params"]["text_encoder"]["embeddings"]
    np.testing.assert_array_equal(
        embeddings["tok_embeddings"]["embedding"], state[f"{MODERN}embeddings.tok_embeddings.weight"]
    )
    # By another name it would come under other terms.
    with pytest.raises(UserError, match="text_encoder.text_encoder|embeddings.word_embeddings"):
        read(state, "mammo_clip")
    with pytest.raises(UserError, match="tok_embeddings"):
        read(published_state(), "mammo_fm")


@pytest.mark.parametrize(
    "key",
    [
        "momentum_encoder.weight",
        "image_projection2",
        "image_encoder.extra.weight",
        f"{BERT}extra",
        f"{MODERN}extra",
        "image_projection.extra.weight",
        "logit_scale2",
    ],
)
def test_arrays_that_would_be_lost_are_refused_by_name(key):
    with pytest.raises(UserError, match=key.removeprefix("image_encoder.").removeprefix(BERT)):
        read(published_state() | {key: np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "key",
    [
        "logit_scale",
        "text_projection.projection.weight",
        "image_projection.projection.bias",
        "image_encoder._blocks.3._bn1.running_mean",
        f"{BERT}encoder.layer.1.output.dense.bias",
        f"{BERT}embeddings.word_embeddings.weight",
    ],
)
def test_missing_arrays_are_named(key):
    with pytest.raises(UserError, match=key.removeprefix("image_encoder.").removeprefix(BERT)):
        read(without(published_state(), key))


@pytest.mark.parametrize(
    "name, text, projection",
    [("mammo_clip", "bert", "linear"), ("mammo_clip", "bert", "mlp"), ("mammo_fm", "modernbert/mammo_fm", "linear")],
)
def test_written_back_it_is_the_same_file(tmp_path, name, text, projection):
    """Key for key and bit for bit, except counts, BERT's pooler and ModernBERT's last norm, which we do not hold."""
    state = published_state("b2", text, projection)
    model = read(state, name)
    written = layouts.layout(name).write(model.variables, meta(model))
    torch_writer.write(tmp_path / "again.tar", written)
    again = weight_files.read(tmp_path / "again.tar")
    assert list(again.rest) == ["config", "epoch"] and again.state.keys() == state.keys()
    for key, value in state.items():
        assert again.state[key].shape == value.shape and again.state[key].dtype == value.dtype
        if key not in model.unused:
            np.testing.assert_array_equal(again.state[key], value, err_msg=key, strict=True)
    reread = layouts.layout(name).read(again.state, again.rest, None)
    assert_same(reread.variables, model.variables)
    assert reread.model == model.model and reread.image == model.image


@pytest.mark.parametrize(
    "section, change, message",
    [
        ("image", {"variant": "b0"}, "b5 and b2"),
        ("image", {"width": 0.5}, "width is 0.5"),
        ("image", {"pads": "same"}, "pads is 'same'"),
        ("text", {"name": "gpt2"}, "gpt2"),
        ("text", {"name": "modernbert"}, "final norm"),
        ("projection", {"bias": False}, "'bias': False"),
    ],
)
def test_what_the_original_code_cannot_be_is_not_written(section, change, message):
    model = read(published_state("b2"))
    changed = model.model | {section: model.model[section] | change}
    with pytest.raises(UserError, match=message):
        layouts.layout("mammo_clip").write(model.variables, meta(model._replace(model=changed)))
    with pytest.raises(UserError, match="pooling sep"):
        layouts.layout("mammo_clip").write({}, meta(model._replace(model=model.model | {"pooling": "sep"})))
    for change, message in (({"channels": 1}, "have 1 channels"), ({"intensity": "range"}, "channels and range")):
        with pytest.raises(UserError, match=message):
            layouts.layout("mammo_clip").write({}, meta(model._replace(image=model.image | change)))


def test_a_prefix_of_parallel_training_is_taken_off(tmp_path):
    state = published_state()
    path = published_file(tmp_path / "ddp.tar", {f"module.{key}": value for key, value in state.items()})
    assert_same(opening.import_weights(path).variables, read(state).variables)


# --- live -------------------------------------------------------------------------------------------------------------


def torch_modules(pixels, modern, mlp):
    """{module name of the published layout: torch module}; the running statistics are those of `pixels`."""
    import torch
    import transformers

    torch.manual_seed(0)
    image = library("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b0", drop_connect_rate=0.0)
    for norm in image.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(0.8, 1.2)
            norm.bias.data.normal_(0, 0.2)
            norm.momentum = 1.0
    with torch.no_grad():
        image.train().extract_features(pixels)
    image._fc = torch.nn.Identity()
    sizes = dict(vocab_size=ROWS, hidden_size=TEXT_WIDTH, num_hidden_layers=2, num_attention_heads=2)
    if modern:
        text = transformers.ModernBertModel(
            transformers.ModernBertConfig(**sizes, intermediate_size=24, pad_token_id=0, reference_compile=False)
        )
    else:
        text = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=24))
    with torch.no_grad():
        for name, parameter in text.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(std=0.2)
    modules = {"image_encoder": image.eval(), (MODERN if modern else BERT).rstrip("."): text.eval()}
    for name, width in (("image_projection", 1280), ("text_projection", TEXT_WIDTH)):
        modules[f"{name}.projection"] = torch.nn.Linear(width, DIM)
        if mlp:
            modules |= {f"{name}.fc": torch.nn.Linear(DIM, DIM), f"{name}.layer_norm": torch.nn.LayerNorm(DIM)}
    return modules


def projected(modules, name, x):
    """Linear; or x + fc(gelu(x)) of the projected x, normalised."""
    import torch

    x = modules[f"{name}.projection"](x)
    if f"{name}.fc" in modules:
        x = modules[f"{name}.layer_norm"](x + modules[f"{name}.fc"](torch.nn.functional.gelu(x)))
    return (x / x.norm(dim=1, keepdim=True)).detach().numpy()


def their_vectors(modules, pixels, ids, mask, pooling):
    """Of the original's forward pass; Mammo-FM's text states are those before the last norm."""
    import torch

    text = modules.get("text_encoder.text_encoder", modules.get("text_encoder"))
    with torch.no_grad():
        features = modules["image_encoder"].extract_features(pixels).mean((2, 3))
        if "text_encoder" in modules:
            text.final_norm = torch.nn.Identity()
        states = text(torch.tensor(ids), torch.tensor(mask).long()).last_hidden_state
        last = mask.sum(1) - 1 if pooling == "eos" else np.zeros(len(ids), int)
        vector = states[torch.arange(len(ids)), torch.tensor(last)]
        return projected(modules, "image_projection", features), projected(modules, "text_projection", vector)


def omegaconf_like(monkeypatch):
    """A class named omegaconf.listconfig.ListConfig, for torch.save to write into the file's config."""
    module = types.ModuleType("omegaconf.listconfig")
    module.ListConfig = type("ListConfig", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.ListConfig()


@pytest.mark.parity
@pytest.mark.parametrize(
    "modern, mlp, pooling, prefix",
    [(False, False, "eos", ""), (False, True, "bos", "module."), (True, False, "eos", "")],
)
def test_vectors_equal_those_of_torch(tmp_path, monkeypatch, modern, mlp, pooling, prefix):
    """Unit vectors, so that 1e-4 is absolute; float32 rounding through some eighty layers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    shrink(monkeypatch)
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (3, HEIGHT, WIDTH), dtype=np.uint8)
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    pixels = ((images - low) / (high.astype(np.float32) - low) - 0.25) / 0.5
    pixels = torch.tensor(pixels, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    modules = torch_modules(pixels, modern, mlp)
    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    state["logit_scale"] = torch.tensor(float(LOGIT_SCALE))
    optimizer = torch.optim.AdamW(modules["image_projection.projection"].parameters())
    modules["image_projection.projection"](torch.ones(1, 1280)).sum().backward()
    optimizer.step()
    state |= {
        f"image_projection.projection.{key}": value
        for key, value in modules["image_projection.projection"].state_dict().items()
    }
    config = CONFIG | {"model": {"text_encoder": {"pooling": pooling}}, "transform": omegaconf_like(monkeypatch)}
    torch.save(
        {
            "model": {prefix + key: value for key, value in state.items()},
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": 3},
            "config": config,
            "epoch": 7,
            "train_loss": np.float64(1.5),
        },
        tmp_path / "model-best.tar",
    )
    words = str(tokenizer_file(tmp_path / "tokenizer.json"))  # or the hub would be asked for it
    variables, meta, *_ = opening.import_weights(tmp_path / "model-best.tar", tokenizer=words)
    assert meta["config"]["model"]["pooling"] == pooling and meta["config"]["image"]["mean"] == 0.25
    assert meta["config"]["model"]["projection"]["kind"] == ("mlp" if mlp else "linear")
    assert variables["params"]["logit_scale"] == LOGIT_SCALE
    ids = random.integers(3, ROWS, (3, 20))
    mask = np.arange(20) < np.array([[20], [9], [2]])
    theirs_image, theirs_text = their_vectors(modules, pixels, ids, mask, pooling)
    model = DualEncoder(variables, meta, 7, batch_size=3, mesh=make_mesh({}, jax.devices()[:1]))
    assert abs(theirs_image[0] - theirs_image[1]).max() > 1e-2 and abs(theirs_text[0] - theirs_text[1]).max() > 1e-2
    assert abs(model.embed_image(images) - theirs_image).max() < 1e-4
    assert abs(model.embed_tokens(ids, mask) - theirs_text).max() < 1e-4


@pytest.mark.parity
def test_what_is_written_loads_strictly_into_the_original_modules(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    state = published_state("b2")
    model = read(state)
    torch_writer.write(tmp_path / "b2.tar", layouts.layout("mammo_clip").write(model.variables, meta(model)))
    loaded = torch.load(tmp_path / "b2.tar", weights_only=True)
    image = library("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b2")
    image._fc = torch.nn.Identity()
    text = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=ROWS,
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=256,
        )
    )
    for prefix, module in (("image_encoder.", image), (BERT, text)):
        part = {key.removeprefix(prefix): value for key, value in loaded["model"].items() if key.startswith(prefix)}
        module.load_state_dict(part, strict=True)
    assert loaded["model"]["logit_scale"].item() == LOGIT_SCALE
    assert loaded["config"]["model"]["image_encoder"]["name"] == "tf_efficientnetv2-detect"
