"""MaMA checkpoints by the keys of its repository: DINOv2 by its authors' names, GPT-2 wrapped by PEFT, or BERT."""

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
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


def wrapped(state):
    """GPT-2 as PEFT saves it: base layers, and adapters of every c_attn."""
    random = np.random.default_rng(5)
    result = {}
    for key, value in state.items():
        path = f"base_model.model.transformer.{key}"
        if ".c_attn." in key:
            module, _, last = path.rpartition(".")
            result[f"{module}.base_layer.{last}"] = value
            if last == "weight":
                inputs, outputs = value.shape
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
    return state | {
        "logit_scale": np.float32(2.6),
        "local_scale": np.float32(2.0),
        "img_encoder_q.local_embed.head.0.weight": np.zeros((2, 2), np.float32),
        "simclr_proj.layers.0.weight": np.zeros((2, 2), np.float32),
    }, words


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
    found = naming.write(names.naming(text), {"params": params["text_encoder"]}, model.model["text"])
    for key, value in words.items():
        if ".c_attn.weight" not in key and not key.startswith("pooler"):
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert {"img_encoder_q.local_embed.head.0.weight", "simclr_proj.layers.0.weight", "local_scale"} <= set(
        model.unused
    )


def test_adapters_are_merged_as_peft_does():
    """W x + alpha / rank * B A x with alpha 32, in float64: GPT-2's kernels are [in, out]."""
    state, words = checkpoint()
    model = layouts.layout("mama").read(state, {}, None)
    x = np.random.default_rng(3).normal(size=WIDTH)
    for layer in range(2):
        prefix = f"text_encoder_q.model.base_model.model.transformer.h.{layer}.attn.c_attn."
        down, up = (state[f"{prefix}lora_{which}.default.weight"].astype(np.float64) for which in "AB")
        expected = words[f"h.{layer}.attn.c_attn.weight"].T @ x + 32 / RANK * (up @ (down @ x))
        kernel = model.variables["params"]["text_encoder"][f"h_{layer}"]["attn"]["c_attn"]["kernel"]
        np.testing.assert_allclose(kernel.T @ x, expected, rtol=1e-5, atol=1e-4 * abs(expected).max())
    assert any("2 LoRA adapters" in note for note in model.notes)


def test_what_would_be_lost_is_refused():
    state, _ = checkpoint()
    with pytest.raises(UserError, match="other_module.weight"):
        layouts.layout("mama").read(state | {"other_module.weight": np.zeros(1)}, {}, None)
    key = "text_encoder_q.model.base_model.model.transformer.h.0.attn.c_attn.base_layer.weight"
    with pytest.raises(UserError, match="has no kernel"):
        layouts.layout("mama").read({name: value for name, value in state.items() if name != key}, {}, None)
