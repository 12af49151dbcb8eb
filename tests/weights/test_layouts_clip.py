"""CLIP's and RegionCLIP's checkpoints by the keys of their files: OpenAI's, transformers' and detectron2's.

Without PyTorch made-up files of each layout go in and out by the command. Live, a CLIP in PyTorch (torch_clip.py) embeds
the same images and texts, from a TorchScript archive as OpenAI publishes it, and transformers' from its folder.
"""

import functools
import json
import math
import warnings

import jax
import numpy as np
import pytest
from live import library
from test_actions import command  # noqa: F401 (a fixture)

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.models.clip_resnet import VARIANTS
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights import layouts, names, naming, opening, torch_file, torch_writer

DIM = 6
IMAGES = {
    "clip_vit": {"variant": "base", "width": 64, "depth": 1, "heads": 1, "patch": 8, "size": 16},
    "clip_resnet": {"variant": "RN50", "width": 8, "depths": (1, 1, 1, 1), "dim": DIM, "size": 64},
}
TEXT = {
    "vocab_size": 71,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 256,
    "max_position_embeddings": 12,
}
GREY = (0.4491643, 0.26856974)


@functools.cache
def arrays(who, prefix):
    """State dict of an encoder below a prefix, drawn by NumPy; without counts of batches."""
    table, random = names.naming(who), np.random.default_rng(len(who))
    options = TEXT if who.startswith("clip_text") else IMAGES[table.encoder]
    variables = {
        path: random.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in naming.abstract(table, options, 0 if options is TEXT else 3).items()
    }
    state = naming.write(table, naming.unflatten_dict(variables, sep="/"), options)
    return {prefix + key: value for key, value in state.items() if not key.endswith(naming.TRACKED)}


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def openai(image):
    size = IMAGES[image]["size"]
    return (
        arrays(f"{image}/openai", "visual.")
        | arrays("clip_text/openai", "")
        | ({"visual.proj": drawn(64, DIM)} if image == "clip_vit" else {})
        | {"text_projection": drawn(64, DIM), "logit_scale": np.float32(2.5)}
        | {
            key: np.asarray(value, np.int64)
            for key, value in (("input_resolution", size), ("context_length", 12), ("vocab_size", 71))
        }
    )


def region_clip(**more):
    return (
        arrays("clip_resnet/openai", "backbone.")
        | arrays("clip_text/openai", "lang_encoder.")
        | {"lang_encoder.text_projection": drawn(64, DIM)}
        | more
    )


def transformers():
    return (
        arrays("clip_vit", "vision_model.")
        | arrays("clip_text", "text_model.")
        | {"visual_projection.weight": drawn(DIM, 64), "text_projection.weight": drawn(DIM, 64)}
        | {"logit_scale": np.float32(2.5), "text_model.embeddings.position_ids": np.arange(12)[None]}
    )


TEACHER = {"teacher_backbone.conv1.weight": drawn(4, 3, 3, 3), "offline_proposal_generator.x": drawn(2)}
FILES = {
    "openai ViT": ("clip", lambda: openai("clip_vit"), {}),
    "openai ResNet": ("clip", lambda: openai("clip_resnet"), {}),
    "transformers": ("clip_transformers", transformers, {}),
    "RegionCLIP": ("region_clip", region_clip, {}),
    "RegionCLIP with a teacher": ("region_clip", region_clip, TEACHER),
}


def test_keys_are_those_of_the_files():
    """By hand, one of each kind; in which the text tower's and the image's do not mix."""
    vit, resnet = openai("clip_vit"), openai("clip_resnet")
    block = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"]
    block += ["ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
    block = {f"transformer.resblocks.0.{key}" for key in (*block, "ln_2.weight", "ln_2.bias")}
    text = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"} | block
    visual = {"class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    visual |= {"ln_post.weight", "ln_post.bias"} | block
    beside = {"text_projection", "logit_scale", "input_resolution", "context_length", "vocab_size"}
    assert set(vit) == text | {f"visual.{key}" for key in visual} | beside
    assert vit["visual.class_embedding"].shape == (64,) and vit["visual.positional_embedding"].shape == (5, 64)
    assert vit["visual.transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    assert {
        "visual.bn3.running_var",
        "visual.layer2.0.downsample.0.weight",
        "visual.layer2.0.downsample.1.running_mean",
        "visual.attnpool.c_proj.bias",
    } < set(resnet)
    assert resnet["visual.attnpool.positional_embedding"].shape == (5, 256)


@pytest.mark.parametrize("file", FILES)
def test_the_command_imports_and_writes_back_bit_for_bit(command, file, tmp_path, capsys):  # noqa: F811
    """`import` and `export --format=torch` in the layout it came from; in OpenAI's for transformers' files."""
    name, build, more = FILES[file]
    state = build()
    path, out, back = tmp_path / "c.pt", tmp_path / "model", tmp_path / "back.pt"
    torch_writer.write(path, {"model": state | more} if name == "region_clip" else state | more)
    assert command("import", path, f"--out={out}", f"--json={tmp_path}/found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["layout"], found["kind"], found["missing"]) == (name, "dual_encoder", [])
    assert set(more) <= set(found["unused"]) and not any("weight" in key for key in set(found["unused"]) - set(more))
    assert found["licences"][0]["title"] == (
        "Apache-2.0 (RegionCLIP)" if name == "region_clip" else "MIT (OpenAI CLIP)"
    )
    assert found["model"]["pooling"] == "eot" and found["model"]["dim"] == DIM
    assert (
        command(
            "export",
            f"--workdir={out}",
            "--format=torch",
            f"--out={back}",
            *(["--layout=region_clip"] if name == "region_clip" else []),
        )
        == 0
    )
    written = torch_file.read(back)["model" if name == "region_clip" else "state_dict"]
    expected = state
    if name == "clip_transformers":  # the same model by other names
        model = layouts.layout("clip").read(written, {}, None)
        variables, _ = opening.open_weights(out)
        one, other = (naming.flatten_dict(each, sep="/") for each in (model.variables, variables))
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
        return
    assert {key for key in written if not key.endswith(naming.TRACKED)} == set(expected)
    for key, value in expected.items():
        value = np.asarray(value)
        assert (written[key].shape, written[key].dtype) == (value.shape, value.dtype), key
        assert written[key].tobytes() == value.tobytes(), key


def test_what_is_particular_to_each():
    scale = lambda model: model.variables["params"]["logit_scale"]
    read = lambda name, state: layouts.layout(name).read(state, {}, None)
    resnet, vit = read("clip", openai("clip_resnet")), read("clip", openai("clip_vit"))
    assert resnet.model["projected"] == ("image",) and "image_projection" not in resnet.variables["params"]
    assert "projected" not in vit.model and scale(vit) == np.float32(2.5)
    np.testing.assert_array_equal(vit.variables["params"]["image_projection"]["dense"]["kernel"], drawn(64, DIM))
    # Of a fused kernel's rows the first third are queries', then keys', then values'.
    for state, found in (
        (arrays("clip_vit/openai", ""), vit.variables["params"]["image_encoder"]["encoder"]["layer_0"]["attention"]),
        (arrays("clip_text/openai", ""), vit.variables["params"]["text_encoder"]["encoder"]["layers_0"]["self_attn"]),
    ):
        kernel, bias = (state[f"transformer.resblocks.0.attn.in_proj_{kind}"] for kind in ("weight", "bias"))
        found = found.get("attention", found)
        for i, names_ in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
            dense = next(found[name] for name in names_ if name in found)
            np.testing.assert_array_equal(dense["kernel"], kernel[64 * i : 64 * (i + 1)].T)
            np.testing.assert_array_equal(dense["bias"], bias[64 * i : 64 * (i + 1)])
    # Half precision, as OpenAI's kernels are, gives the same as the numbers in float32.
    half = {key: value.astype(np.float16) if value.ndim > 1 else value for key, value in openai("clip_vit").items()}
    np.testing.assert_array_equal(
        read("clip", half).variables["params"]["text_projection"]["dense"]["kernel"],
        drawn(64, DIM).astype(np.float16).astype(np.float32),
    )
    assert not any("QuickGELU" in note for note in vit.notes)
    plain = {key: value for key, value in openai("clip_vit").items() if key != "input_resolution"}
    assert any("QuickGELU" in note for note in read("clip", plain).notes)
    region = read("region_clip", region_clip())
    assert region.model["image"]["frozen_norms"] and math.isclose(scale(region), math.log(100), rel_tol=1e-6)
    assert scale(read("region_clip", region_clip(**{"lang_encoder.logit_scale": np.float32(2.0)}))) == 2.0
    tokens = {
        "vision_config": {"hidden_act": "gelu"},
        "text_config": {"hidden_act": "gelu", **TEXT},
        "model_type": "clip",
    }
    gelu = layouts.layout("clip_transformers").read(transformers(), {}, tokens).model
    assert gelu["image"]["act"] == gelu["text"]["hidden_act"] == "gelu"


def test_an_imported_resnet_embeds_regions():
    """By its own last stage and pool, without a head: the whole of an image of the nominal size is the image."""
    model, images = layouts.layout("region_clip").read(region_clip(), {}, None), np.zeros((1, 64, 64), np.uint8)
    for key, value in naming.flatten_dict(model.variables["batch_stats"], sep="/").items():
        np.copyto(value, np.abs(value)) if key.endswith("var") else None
    images[0, 10:40, 5:30] = 200
    ours = dual_encoder(model)
    ours.preprocessing = ours.preprocessing | {"height": 64, "width": 64}  # of what the tiny network was made for
    assert ours.region_heads == ("image_encoder",)
    found = ours.embed_regions(images, np.float32([[[0, 0, 64, 64], [5, 10, 30, 40]]]))
    np.testing.assert_allclose(found[0, 0], ours.embed_image(images)[0], atol=1e-4)
    assert abs(found[0, 1] - found[0, 0]).max() > 1e-2


def test_what_is_missing_or_unknown_is_refused():
    for name, state, key in (
        ("clip", openai("clip_vit"), "visual.proj"),
        ("clip", openai("clip_vit"), "visual.ln_pre.bias"),
        ("clip", openai("clip_resnet"), "visual.attnpool.q_proj.weight"),
        ("clip", openai("clip_resnet"), "logit_scale"),
        ("region_clip", region_clip(), "lang_encoder.ln_final.bias"),
        ("clip_transformers", transformers(), "visual_projection.weight"),
    ):
        cut = {other: value for other, value in state.items() if other != key}
        with pytest.raises(UserError, match=key.rpartition("visual.")[2].removeprefix("lang_encoder.")):
            layouts.layout(name).read(cut, {}, None)
        with pytest.raises(UserError, match="something"):
            layouts.layout(name).read(state | {"something.else": np.zeros(1)}, {}, None)


def test_what_its_code_would_compute_otherwise_is_not_written():
    read = lambda image: layouts.layout("clip").read(openai(image), {}, None)
    model = read("clip_vit")
    for change, said in (
        ({"pooling": "mean"}, "'eot' for config.model.pooling"),
        ({"image": model.model["image"] | {"act": "gelu"}}, "config.model.image.act"),
        ({"text": model.model["text"] | {"hidden_act": "gelu"}}, "config.model.text.hidden_act"),
        ({"projection": {"kind": "linear", "bias": True}}, "config.model.projection"),
        ({"heads": {"regions": {}}}, "config.model.heads"),
        ({"image": {"name": "vit"}}, "config.model.image.name"),
    ):
        with pytest.raises(UserError, match=said):
            layouts.layout("clip").write(model.variables, {"config": {"model": model.model | change}})
    with pytest.raises(UserError, match="ResNets alone"):
        layouts.layout("region_clip").write(model.variables, {"config": {"model": model.model}})


def test_one_encoder_alone():
    """The visual encoder, and a detector of RegionCLIP, which has no text tower."""
    visual = {key: value for key, value in openai("clip_vit").items() if key.startswith("visual.")}
    model = layouts.layout("encoder").read(visual, {}, None)
    assert layouts.detect(visual) == "encoder" and model.model["image"]["name"] == "clip_vit"
    detector = arrays("clip_resnet/openai", "backbone.") | {"roi_heads.box_predictor.cls_score.weight": drawn(5, DIM)}
    model = layouts.layout("encoder").read(detector, {}, None)
    assert layouts.detect(detector) == "encoder" and model.model["image"]["name"] == "clip_resnet"
    assert model.unused == ["roi_heads.box_predictor.cls_score.weight"]


def test_vectors_of_concepts_are_shown(command, tmp_path, capsys):  # noqa: F811
    """RegionCLIP's [concepts, d], a tensor and nothing else."""
    torch_writer.write(tmp_path / "concepts.pth", 2 * np.eye(5, 8, dtype=np.float32))
    assert command("inspect", tmp_path / "concepts.pth", f"--json={tmp_path}/found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "kind": "array",
        "shape": [5, 8],
        "dtype": "float32",
        "lengths": [2.0, 2.0],
    }
    assert "5 x 8" in capsys.readouterr().out


def zeros(who, options, channels):
    leaves = naming.abstract(names.naming(who), options, channels)
    return naming.unflatten_dict(
        {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in leaves.items()}, sep="/"
    )


def test_published_sizes_are_recognised():
    """Parameters of OpenAI's visual encoders as its own code counts them, and the options of their shapes."""
    for who, options, head, count in (
        ("clip_resnet/openai", {"variant": "RN50"}, 0, 38_316_896),
        ("clip_vit/openai", {"variant": "base", "size": 224}, 768 * 512, 86_192_640),
        ("clip_vit/openai", {"variant": "base", "size": 224, "patch": 32}, 768 * 512, 87_849_216),
    ):
        state = naming.write(names.naming(who), zeros(who, options, 3), options)
        shapes = {key: value.shape for key, value in state.items()}
        assert names.naming(who).options(shapes, None) == options
        learnt = (value.size for key, value in state.items() if "running" not in key and not key.endswith("tracked"))
        assert sum(learnt) + head == count
    assert [names.naming("clip_resnet/openai").options(shape_table(name), None) for name in VARIANTS] == [
        {"variant": name} for name in VARIANTS
    ]


def shape_table(name):
    """Of the arrays that tell a ResNet's options."""
    width, depths, dim, size = VARIANTS[name]
    table = {"conv1.weight": (width // 2, 3, 3, 3), "layer1.0.conv1.weight": (width, width, 1, 1)}
    table |= {f"layer{i}.{j}.bn1.weight": (1,) for i, depth in enumerate(depths, 1) for j in range(depth)}
    places = (1 + (size // 32) ** 2, 32 * width)
    return table | {"attnpool.positional_embedding": places, "attnpool.c_proj.weight": (dim, 32 * width)}


def dual_encoder(model):
    meta = {
        "config": {"image": model.image, "model": model.model, "data": {"text_length": 12}},
        "tokenizer": None,
        "preprocessing": model.preprocessing,
        "provenance": {},
    }
    return DualEncoder(model.variables, meta, 0, batch_size=2, mesh=make_mesh({}, jax.devices()[:1]))


def embedded(model, images, ids):
    ours = dual_encoder(model)
    return ours.embed_image(images), ours.embed_tokens(ids, ids > 0)


def pictures(size):
    """(uint8 [2, size, size], the same normalised for PyTorch)."""
    torch = library("torch")
    images = np.random.default_rng(0).integers(0, 255, (2, size, size), dtype=np.uint8)
    return images, torch.tensor((images / 255 - GREY[0]) / GREY[1], dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)


def texts():
    ids = np.random.default_rng(1).integers(1, 70, (2, 9))
    ids[0, 8], ids[1, 5], ids[1, 6:] = 70, 70, 0  # the end-of-text token is the greatest; padding behind it
    return ids


def unit(x):
    return (x / x.norm(dim=1, keepdim=True)).detach().numpy()


@pytest.mark.parity
@pytest.mark.parametrize("image", IMAGES)
def test_embeddings_equal_torch(image, tmp_path):
    """From a TorchScript archive; vectors of length one, so 1e-4 is absolute."""
    torch = library("torch")
    import torch_clip

    torch.manual_seed(0)
    size = IMAGES[image]["size"]
    if image == "clip_vit":
        visual = torch_clip.VisionTransformer(64, 1, 8, size, DIM)
    else:
        visual = torch_clip.ResNet(8, (1, 1, 1, 1), DIM, size)
    theirs = torch_clip.Clip(visual, vocabulary=71, width=64, depth=1, length=12, dim=DIM).eval()
    images, pixels = pictures(size)
    if image == "clip_resnet":
        for norm in (module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        with torch.no_grad():
            visual.train()(pixels)
        visual.eval()
    theirs.forward = theirs.encode_text
    ids = texts()
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    whole = {key for key in openai(image) if key not in ("input_resolution", "context_length", "vocab_size")}
    assert {key for key in state if not key.endswith(naming.TRACKED)} == whole
    with warnings.catch_warnings(action="ignore"):  # that it is deprecated, and what a trace loses
        torch.jit.save(torch.jit.trace(theirs, torch.tensor(ids), check_trace=False), tmp_path / "clip.pt")
    read = torch_file.read(tmp_path / "clip.pt")
    assert read.keys() >= whole and all(np.array_equal(read[key], state[key]) for key in read)
    model = layouts.layout("clip").read(read, {}, None)
    found = embedded(model, images, ids)
    for ours, expected in zip(found, (visual(pixels), theirs.encode_text(torch.tensor(ids))), strict=True):
        assert abs(ours - unit(expected)).max() < 1e-4


@pytest.mark.parity
def test_embeddings_equal_transformers(tmp_path):
    """Of its folder, with the config beside the weights; heads are not of 64 channels."""
    package = library("transformers")
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    theirs = package.CLIPModel(
        package.CLIPConfig(
            text_config=TEXT | {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 70},
            vision_config=vision | {"image_size": 16, "patch_size": 8},
            projection_dim=DIM,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    imported = opening.import_weights(tmp_path)
    assert imported.layout == "clip_transformers"
    images, pixels = pictures(16)
    ids = texts()
    torch = library("torch")
    expected = theirs(torch.tensor(ids), pixels, attention_mask=torch.tensor(ids > 0))
    model = layouts.layout("clip_transformers").read(
        *((file := opening.weight_files.read(tmp_path)).state, file.rest, file.config)
    )
    found = embedded(model, images, ids)
    for ours, vectors in zip(found, (expected.image_embeds, expected.text_embeds), strict=True):
        assert abs(ours - unit(vectors)).max() < 1e-4
