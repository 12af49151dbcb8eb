"""MedCLIP checkpoints: of ResNet-50 and of Swin-T, by the keys of its repository (medclip/modeling_medclip.py).

Live, a torch model of that structure with random weights: torchvision's ResNet-50 with its fc as projection, or
transformers' Swin-T with a projection, beside BERT whose states are the mean of layers 1, 2 and the last.
"""

import jax
import numpy as np
import pytest
from live import library

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights import layouts, names, naming
from mammoclip_jax.weights.weight_files import read

BERT = dict(vocab_size=71, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
MEAN, STD = 0.5862785803043838, 0.27950088968644304


def state_without_torch(vision):
    """The checkpoint's arrays, drawn by NumPy; `vision` is a naming."""
    random = np.random.default_rng(0)
    state = {}
    for prefix, who, options, channels in (
        ("vision_model.model.", vision, {"variant": "50"} if "resnet" in vision else {"variant": "tiny"}, 3),
        ("text_model.model.", "bert", BERT, 0),
    ):
        table = names.naming(who)
        variables = naming.unflatten_dict(
            {
                path: random.normal(size=leaf.shape).astype(np.float32)
                for path, leaf in naming.abstract(table, options, channels).items()
            },
            sep="/",
        )
        state |= {prefix + key: value for key, value in naming.write(table, variables, options).items()}
    head = "vision_model.model.fc.weight" if "resnet" in vision else "vision_model.projection_head.weight"
    state[head] = random.normal(size=(512, 2048 if "resnet" in vision else 768)).astype(np.float32)
    state["text_model.projection_head.weight"] = random.normal(size=(512, 128)).astype(np.float32)
    return state | {"logit_scale": np.float32(2.5)}


@pytest.mark.parametrize("vision, name", [("resnet/torchvision", "resnet"), ("swin", "swin")])
def test_every_array_has_its_place(vision, name):
    state = state_without_torch(vision)
    assert layouts.detect(state) == "medclip"
    model = layouts.layout("medclip").read(state, {}, None)
    assert model.kind == "dual_encoder" and model.model["image"]["name"] == name
    assert model.model["text"]["average_layers"] == [1, 2, -1] and model.model["pooling"] == "mean"
    params = model.variables["params"]
    head = "vision_model.model.fc.weight" if name == "resnet" else "vision_model.projection_head.weight"
    np.testing.assert_array_equal(params["image_projection"]["dense"]["kernel"], state[head].T)
    assert params["logit_scale"] == np.float32(2.5)
    lost = [key for key in model.unused if not key.endswith("num_batches_tracked")]
    assert all("pooler" in key or "relative_position_index" in key for key in lost), lost
    assert head not in model.unused


def test_what_cannot_be_told_or_is_unknown_is_refused():
    state = state_without_torch("resnet/torchvision")
    with pytest.raises(UserError, match="projection_head.bias is there"):
        layouts.layout("medclip").read(state | {"text_model.projection_head.bias": np.zeros(512)}, {}, None)
    with pytest.raises(UserError, match="extra.weight"):
        layouts.layout("medclip").read(state | {"extra.weight": np.zeros(1)}, {}, None)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("vision", ["resnet", "swin"])
def test_embeddings_equal_torch(vision, tmp_path):
    """Vectors of length one, so 1e-4 is absolute; the batch statistics are those of the images."""
    torch, transformers = pytest.importorskip("torch"), library("transformers")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 255, (2, 224, 224), dtype=np.uint8)
    pixels = torch.tensor((images / 255 - MEAN) / STD, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    if vision == "resnet":
        tower = library("torchvision").models.resnet50()
        tower.fc = torch.nn.Linear(2048, 512, bias=False)
        for norm in (module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        with torch.no_grad():
            tower.train()(pixels)
        modules = {"vision_model.model": tower}
        image_side = tower
    else:
        tower = transformers.SwinModel(transformers.SwinConfig())
        modules = {"vision_model.model": tower, "vision_model.projection_head": torch.nn.Linear(768, 512, bias=False)}

        def image_side(x):
            return modules["vision_model.projection_head"](tower(x).pooler_output)

    text = transformers.BertModel(transformers.BertConfig(**BERT))
    modules |= {"text_model.model": text, "text_model.projection_head": torch.nn.Linear(128, 512, bias=False)}
    state = {
        f"{name}.{key}": value.numpy()
        for name, module in modules.items()
        for key, value in module.eval().state_dict().items()
    } | {"logit_scale": np.float32(2.6)}
    if vision == "swin":  # in files it has other names than in memory
        tower.save_pretrained(tmp_path)
        state = {key: value for key, value in state.items() if not key.startswith("vision_model.model.")}
        state |= {f"vision_model.model.{key}": value for key, value in read(tmp_path).state.items()}
    assert layouts.detect(state) == "medclip"
    model = layouts.layout("medclip").read(state, {}, None)
    ids = np.random.default_rng(1).integers(1, 71, (1, 9))
    with torch.no_grad():
        theirs = image_side(pixels)
        states = text(torch.tensor(ids), output_hidden_states=True).hidden_states
        words = modules["text_model.projection_head"](torch.stack([states[1], states[2], states[-1]]).mean((0, 2)))
    meta = {
        "config": {"image": model.image, "model": model.model, "data": {"text_length": 77}},
        "tokenizer": None,
        "preprocessing": model.preprocessing,
        "provenance": {},
    }
    ours = DualEncoder(model.variables, meta, 0, batch_size=2, mesh=make_mesh({}, jax.devices()[:1]))
    for found, expected in ((ours.embed_image(images), theirs), (ours.embed_tokens(ids, ids > 0), words)):
        assert abs(found - (expected / expected.norm(dim=1, keepdim=True)).numpy()).max() < 1e-4
