"""MaMA checkpoints by the keys of its repository: DINOv2 by its authors' names, GPT-2 wrapped by PEFT, or BERT."""

import functools
import operator

import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import lora
from mammoclip_jax.weights import layouts, names, naming

WIDTH, RANK = 128, 4
TEXT = {
    "gpt2": dict(vocab_size=71, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=20),
    "bert": dict(vocab_size=71, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24),
}
IMAGE = {"variant": "small", "depth": 2, "size": 56, "registers": 4}


def arrays(who, options, channels):
    """State dict of an encoder, drawn by NumPy."""
    random = np.random.default_rng(len(who))
    table = names.naming(who)
    variables = {
        path: random.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in naming.abstract(table, options, channels).items()
    }
    return naming.write(table, naming.unflatten_dict(variables, sep="/"), options)


def wrapped(state, prefix="transformer.", adapted=".c_attn."):
    """A text encoder as PEFT saves it: base layers, and adapters of every layer of that name."""
    random = np.random.default_rng(5)
    result = {}
    for key, value in state.items():
        path = f"base_model.model.{prefix}{key}"
        if adapted in key:
            module, _, last = path.rpartition(".")
            result[f"{module}.base_layer.{last}"] = value
            if last == "weight":
                inputs, outputs = value.shape if prefix else value.shape[::-1]
                result[f"{module}.lora_A.default.weight"] = random.normal(size=(RANK, inputs)).astype(np.float32)
                result[f"{module}.lora_B.default.weight"] = random.normal(size=(outputs, RANK)).astype(np.float32)
        else:
            result[path] = value
    return result


def checkpoint(text="gpt2"):
    random = np.random.default_rng(0)
    image, words = arrays("dinov2/authors", IMAGE, 3), arrays(text, TEXT[text], 0)
    state = {f"img_encoder_q.model.{key}": value for key, value in image.items()}
    state |= {
        f"text_encoder_q.model.{key}": value for key, value in (wrapped(words) if text == "gpt2" else words).items()
    }
    for name, inputs in (("img_encoder_q", 384), ("text_encoder_q", WIDTH)):
        state |= {
            f"{name}.global_embed.weight": random.normal(size=(512, inputs)).astype(np.float32),
            f"{name}.global_embed.bias": random.normal(size=512).astype(np.float32),
        }
    return state | {"logit_scale": np.float32(2.6), "confmat.confmat": np.zeros((2, 2), np.float32)}, words


def mlp(prefix, inputs, hidden, dim, *, conv, affine):
    """A head of two linear layers and two batch norms, as PyTorch saves it."""
    random = np.random.default_rng(inputs)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)
    kernel = (1,) if conv else ()
    state = {f"{prefix}0.weight": draw(hidden, inputs, *kernel), f"{prefix}3.weight": draw(dim, hidden, *kernel)}
    if conv:
        state |= {f"{prefix}0.bias": draw(hidden), f"{prefix}3.bias": draw(dim)}
    for layer, width, scaled in ((1, hidden, True), (4, dim, affine)):
        state |= {f"{prefix}{layer}.weight": draw(width), f"{prefix}{layer}.bias": draw(width)} if scaled else {}
        state |= {f"{prefix}{layer}.running_mean": draw(width), f"{prefix}{layer}.running_var": draw(width) ** 2}
        state[f"{prefix}{layer}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def mama_heads():
    return (
        mlp("img_encoder_q.local_embed.head.", 384, 10, 6, conv=True, affine=False)
        | mlp("text_encoder_q.local_embed.head.", WIDTH, 10, 6, conv=True, affine=False)
        | mlp("simclr_proj.layers.", 384, 8, 5, conv=False, affine=True)
        | {"local_scale": np.array(2.0, np.float32)}
    )


def glam_heads(pooler):
    random = np.random.default_rng(3)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)
    attention = lambda prefix: {
        f"{prefix}in_proj_weight": draw(3 * 384, 384),
        f"{prefix}in_proj_bias": draw(3 * 384),
        f"{prefix}out_proj.weight": draw(384, 384),
        f"{prefix}out_proj.bias": draw(384),
    }
    norm = lambda prefix: {f"{prefix}weight": draw(384), f"{prefix}bias": draw(384)}
    state = attention("view_attn1.") | attention("view_attn2.") | norm("patch_ln.")
    for name in ("merge_patch1.", "merge_patch2.") if pooler else ():
        state |= (
            {f"{name}query": draw(1, 384)} | attention(f"{name}attn.") | norm(f"{name}ln_q.") | norm(f"{name}ln_k.")
        )
    return state | {"patch_scale": np.array(2.5, np.float32)}


@pytest.mark.parametrize("text", TEXT)
def test_towers_projections_and_scale(text):
    state, words = checkpoint(text)
    assert layouts.detect(state) == "mama"
    model = layouts.layout("mama").read(state, {}, None)
    params = model.variables["params"]
    assert model.model["image"]["name"] == "dinov2" and model.model["image"]["registers"] == 4
    assert model.model["image"]["pooling"] == "all" and model.model["text"]["name"] == text
    assert params["logit_scale"] == np.float32(2.6)
    np.testing.assert_array_equal(
        params["image_projection"]["dense"]["kernel"], state["img_encoder_q.global_embed.weight"].T
    )
    assert "confmat.confmat" in model.unused and "heads" not in model.model


def built(model, image):
    """The dual encoder of what was read, and its outputs for two views and their texts in evaluation mode."""
    module = models.build(model.model, TEXT["bert"]["vocab_size"])
    ids = np.arange(2 * 12).reshape(1, 2, 12) % 60
    inputs = {"sentence": np.repeat(np.arange(3), 4).reshape(1, 1, 12).repeat(2, axis=1), "token_mask": ids >= 0}
    mask = np.ones((1, 2), bool)
    given = module.apply(model.variables, image, ids, ids >= 0, train=False).named
    inputs |= given | {"mask": mask[:, 0], "view_mask": mask}
    apply = lambda name: module.apply(model.variables, name, inputs, train=False, method="apply_head")
    made = {name: apply(name) for name in model.model["heads"]}
    return given, {path: value for parts in made.values() for path, value in parts.items()}


def normalised(state, prefix, layer, x):
    scaled = (x - state[f"{prefix}{layer}.running_mean"]) / np.sqrt(state[f"{prefix}{layer}.running_var"] + 1e-5)
    if f"{prefix}{layer}.weight" not in state:
        return scaled
    return scaled * state[f"{prefix}{layer}.weight"] + state[f"{prefix}{layer}.bias"]


def by_hand(state, prefix, x):
    """A head of MaMA in evaluation mode, in float64."""
    state = {key: np.asarray(value, np.float64) for key, value in state.items() if key.startswith(prefix)}
    for at in (0, 3):
        kernel = state[f"{prefix}{at}.weight"].reshape(state[f"{prefix}{at}.weight"].shape[:2])
        x = normalised(state, prefix, at + 1, x @ kernel.T + state.get(f"{prefix}{at}.bias", 0))
        x = np.maximum(x, 0) if at == 0 else x
    return x


def test_heads_are_read_and_compute_the_same():
    towers, _ = checkpoint("bert")
    state = towers | mama_heads()
    model = layouts.layout("mama").read(state, {}, None)
    assert [key for key in model.unused if "embed.head" in key or "simclr" in key or "scale" in key] == []
    assert model.model["heads"]["local"] == {"stage": "last", "hidden": 10, "dim": 6}
    image = np.random.default_rng(1).normal(size=(1, 2, 56, 56, 3)).astype(np.float32)
    given, found = built(model, image)
    patches = np.asarray(given["image/last"], np.float64)[:, :1].reshape(1, 1, -1, 384)
    expected = by_hand(state, "img_encoder_q.local_embed.head.", patches)
    np.testing.assert_allclose(found["local/patches"], expected, rtol=1e-3, atol=1e-3)
    expected = by_hand(state, "simclr_proj.layers.", np.asarray(given["image/pooled"], np.float64))
    np.testing.assert_allclose(found["simclr/vectors"], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["local/logit_scale"], np.exp(2.0), rtol=1e-6)


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("head", ["", "mama", "glam", "glam with pooler"])
def test_a_file_goes_back_bit_for_bit(text, head):
    """All keys, shapes, dtypes and bits but those of the confusion matrix; adapters are adapters, and no kernel of theirs
    has changed."""
    towers, _ = checkpoint(text)
    more = {"": {}, "mama": mama_heads(), "glam": glam_heads(False), "glam with pooler": glam_heads(True)}[head]
    state = towers | more
    layout = layouts.layout("mama")
    model = layout.read(state, {}, None)
    found = layout.write(model.variables, {"config": {"model": model.model, "image": model.image}})["state_dict"]
    assert set(found) == set(state) - {"confmat.confmat"}
    for key, value in found.items():
        original = np.asarray(state[key])
        assert (value.shape, value.dtype) == (original.shape, original.dtype), key
        assert value.tobytes() == original.tobytes(), key
    again = layout.read(found, {}, None)
    assert again.model == model.model
    one, other = (naming.flatten_dict(each.variables, sep="/") for each in (model, again))
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def test_what_its_code_would_compute_otherwise_is_not_written():
    towers, _ = checkpoint("gpt2")
    model = layouts.layout("mama").read(towers | mama_heads(), {}, None)
    for part, change, said in (
        ("model", {"pooling": "eos"}, "'mean' for config.model.pooling, this model 'eos'"),
        ("model", {"lora": model.model["lora"] | {"alpha": 16.0}}, "config.model.lora.alpha, this model 16.0"),
        ("model", {"image": model.model["image"] | {"pooling": "cls"}}, "config.model.image.pooling"),
        ("model", {"heads": {"mine": {"kind": "local"}}}, "config.model.heads.mine"),
        ("model", {"text": {"name": "modernbert"}}, "text encoder of the original code"),
        ("image", {"mean": 0.3}, "config.image.mean"),
    ):
        config = {"model": model.model, "image": model.image}
        config[part] = config[part] | change
        with pytest.raises(UserError, match=said):
            layouts.layout("mama").write(model.variables, {"config": config})


@pytest.mark.parametrize("pooler", [False, True])
def test_glams_head_is_read(pooler):
    towers, _ = checkpoint("bert")
    state = towers | glam_heads(pooler)
    model = layouts.layout("mama").read(state, {}, None)
    assert model.model["heads"]["cross_view"]["pooling"] == ("attention" if pooler else "average")
    attention = model.variables["params"]["heads"]["cross_view"]["attention2"]
    for i, part in enumerate(("query", "key", "value")):  # of torch's fused array
        rows = slice(384 * i, 384 * (i + 1))
        np.testing.assert_array_equal(attention[part]["kernel"], state["view_attn2.in_proj_weight"][rows].T)
        np.testing.assert_array_equal(attention[part]["bias"], state["view_attn2.in_proj_bias"][rows])
    # 4 x 4 patches make one mega-patch.
    _, found = built(model, np.random.default_rng(1).normal(size=(1, 2, 56, 56, 3)).astype(np.float32))
    assert found["cross_view/cells"].shape == (1, 2, 1, 384)


def test_a_head_in_part_is_refused():
    towers, _ = checkpoint("bert")
    state = towers | mama_heads()
    del state["text_encoder_q.local_embed.head.4.running_mean"]
    with pytest.raises(UserError, match="has no text_encoder_q.local_embed.head.4.running_mean"):
        layouts.layout("mama").read(state, {}, None)


@pytest.mark.parametrize("text", TEXT)
def test_adapters_stay_and_compute_as_peft_does(text):
    """W x + alpha / rank * B A x with alpha 32, in float64: GPT-2's kernels are [in, out], BERT's [out, in]."""
    state, words = checkpoint(text)
    if text == "bert":
        state = {key: value for key, value in state.items() if not key.startswith("text_encoder_q.model.")}
        state |= {f"text_encoder_q.model.{key}": value for key, value in wrapped(words, "", ".query.").items()}
    model = layouts.layout("mama").read(state, {}, None)
    merged, plain = lora.merged(model.variables, model.model)
    assert model.model["lora"]["rank"] == RANK and not plain["lora"]
    x = np.random.default_rng(3).normal(size=WIDTH)
    for layer in range(2):
        name = f"h.{layer}.attn.c_attn" if text == "gpt2" else f"encoder.layer.{layer}.attention.self.query"
        prefix = f"text_encoder_q.model.base_model.model.{'transformer.' * (text == 'gpt2')}{name}."
        down, up = (state[f"{prefix}lora_{which}.default.weight"].astype(np.float64) for which in "AB")
        base = words[f"{name}.weight"].astype(np.float64)
        expected = (base.T if text == "gpt2" else base) @ x + 32 / RANK * (up @ (down @ x))
        path = name.replace(f".{layer}.", f"_{layer}.").split(".")
        of = lambda variables: functools.reduce(operator.getitem, path, variables["params"]["text_encoder"])["kernel"]
        np.testing.assert_array_equal(of(model.variables), base if text == "gpt2" else base.T)
        np.testing.assert_allclose(of(merged).T @ x, expected, rtol=1e-5, atol=1e-4 * abs(expected).max())
    assert any("2 LoRA adapters" in note for note in model.notes)


def test_what_would_be_lost_is_refused():
    state, _ = checkpoint()
    with pytest.raises(UserError, match="other_module.weight"):
        layouts.layout("mama").read(state | {"other_module.weight": np.zeros(1)}, {}, None)
    key = "text_encoder_q.model.base_model.model.transformer.h.0.attn.c_attn.base_layer.weight"
    module = key.removesuffix("base_layer.weight")
    others = {name: value for name, value in state.items() if not name.startswith(f"{module}lora_")}
    for found, said in (
        ({name: value for name, value in state.items() if name != key}, "has no kernel"),
        ({name: value for name, value in state.items() if name != f"{module}lora_B.default.weight"}, "no other half"),
        (others, "1 of 2 layers"),
    ):
        with pytest.raises(UserError, match=said):
            layouts.layout("mama").read(found, {}, None)
