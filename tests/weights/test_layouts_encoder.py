"""A single encoder, whoever wrote it: found under its prefix, with what is left out named."""

import json

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import layouts, names, naming, torch_writer
from mammoclip_jax.weights.opening import open_weights

CASES = {
    "bert": (dict(vocab_size=71, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24), 0),
    "clip_text": (
        dict(
            vocab_size=71,
            hidden_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
        ),
        0,
    ),
    "convnext/timm": ({"variant": "tiny"}, 3),
    "dinov2/authors": ({"variant": "small", "size": 56, "registers": 4}, 3),
    "efficientnet/timm": ({"variant": "b0"}, 1),
    "gpt2": (dict(vocab_size=71, n_embd=128, n_layer=1, n_head=2, n_positions=20), 0),
    "resnet/torchvision": ({"variant": "18"}, 3),
    "swin": ({"variant": "tiny"}, 3),
    "vit/timm": ({"variant": "tiny", "eps": 1e-6}, 3),
}
PREFIXES = {
    "bert": "bert.",
    "gpt2": "transformer.",
    "clip_text": "text_model.",
    "resnet/torchvision": "backbone.",
    "swin": "swin.",
}


def state_of(who):
    options, channels = CASES[who]
    table = names.naming(who)
    variables = {
        path: np.broadcast_to(np.float32(0.5), leaf.shape)
        for path, leaf in naming.abstract(table, options, channels).items()
    }
    return naming.write(table, naming.unflatten_dict(variables, sep="/"), options)


@pytest.mark.parametrize("who, prefix", [(who, "") for who in CASES] + list(PREFIXES.items()))
def test_encoders_are_found(who, prefix):
    state = {prefix + key: value for key, value in state_of(who).items()}
    state |= {"lm_head.weight": np.zeros((2, 2))} if who == "gpt2" and prefix else {}
    assert layouts.detect(state) == "encoder"
    model = layouts.layout("encoder").read(state, {}, None)
    kind = "text_encoder" if CASES[who][1] == 0 else "image_encoder"
    assert model.kind == kind and set(model.variables["params"]) == {kind}
    assert model.model[kind.partition("_")[0]]["name"] == who.partition("/")[0]
    assert kind == "text_encoder" or model.image["channels"] == CASES[who][1]


def test_a_hub_folder_and_a_torch_file_open_alike(tmp_path):
    state = state_of("bert")
    config = {"model_type": "bert"} | CASES["bert"][0]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    torch_writer.write(tmp_path / "hub" / "pytorch_model.bin", state)
    torch_writer.write(tmp_path / "alone.pth", {"state_dict": {f"module.{key}": value for key, value in state.items()}})
    opened = [open_weights(tmp_path / name) for name in ("hub", "alone.pth")]
    for variables, meta in opened:
        assert meta["kind"] == "text_encoder"
        kernel = variables["params"]["text_encoder"]["encoder"]["layer_0"]["output"]["dense"]["kernel"]
        np.testing.assert_array_equal(kernel, state["encoder.layer.0.output.dense.weight"].T)


def test_strangers_are_refused():
    with pytest.raises(UserError, match="no layout known here has keys like foo.weight"):
        layouts.detect({"foo.weight": np.zeros(1)})
