"""Swin of transformers read and written back: same features, same arrays, nothing missing, nothing unused.

Live (parity): networks with random weights, by way of the folder that transformers saves and loads. All published
variants have its keys and shapes. Without PyTorch: what is written is read back bit for bit, and the errors.
"""

import functools

import jax
import numpy as np
import pytest
from comparison import close
from flax.traverse_util import unflatten_dict
from live import library
from traced import abstract

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.swin import VARIANTS, position_index
from mammoclip_jax.weights import names, naming
from mammoclip_jax.weights.names.swin import HUGGINGFACE

SMALL = {"width": 8, "depths": (2, 1), "heads": (1, 2)}
BLOCK = "encoder.layers.0.blocks.0."
TABLE = BLOCK + "attention.self.relative_position_bias_table"
STEM = "embeddings.patch_embeddings.projection.weight"


def layout(options, channels=3):
    """{key: shape} of what would be written, without memory for it."""
    found = {}
    for path, value in abstract(HUGGINGFACE, options, channels).items():
        leaf = HUGGINGFACE.leaf(path.partition("/")[2])
        found[leaf.key] = naming.to_torch(leaf, np.broadcast_to(np.int8(0), value.shape)).shape
    return found


def random_state(channels=3, **options):
    random, options = np.random.default_rng(0), SMALL | options
    values = {
        path: random.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in abstract(HUGGINGFACE, options, channels).items()
    }
    return naming.write(HUGGINGFACE, unflatten_dict(values, sep="/"), options)


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# --- live -------------------------------------------------------------------------------------------------------------


def randomise(model):
    """Kernels that keep the size of activations, scales near one; biases of positions that count."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if key.endswith("table"):
            value.normal_(0, 1, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith("weight"):
            value.uniform_(0.6, 1.4, generator=generator)
        else:
            value.normal_(0, 0.3, generator=generator)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
    return model.apply(variables, x, train=False)


@pytest.mark.parity
@pytest.mark.parametrize(
    "with_config, options, expected",
    [
        (
            True,
            {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 3, "layer_norm_eps": 1e-2},
            {"width": 8, "depths": (1, 2, 1), "heads": (1, 2, 4), "window": 3, "layer_norm_eps": 1e-2},
        ),
        (
            False,
            {"embed_dim": 12, "depths": [2, 1], "num_heads": [3, 6], "num_channels": 1},
            {"width": 12, "depths": (2, 1), "heads": (3, 6)},
        ),
    ],
    ids=["with config", "shapes alone"],
)
def test_features_equal_transformers(with_config, options, expected, tmp_path):
    """At two sizes, of which windows, patches and merging divide no side of one; loaded from what was written."""
    torch, transformers = pytest.importorskip("torch"), library("transformers")
    files, file = library("safetensors.numpy"), tmp_path / "model.safetensors"
    theirs = transformers.SwinModel(transformers.SwinConfig(**options))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    state = files.load_file(file)
    assert names.detect(state) == "swin"
    tower = naming.read(HUGGINGFACE, state, theirs.config.to_dict() if with_config else None)
    channels = options.get("num_channels", 3)
    assert tower.options == {"name": "swin"} | expected and tower.channels == channels and not tower.unused
    written = naming.write(HUGGINGFACE, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(np.array_equal(written[key], state[key]) for key in state)
    files.save_file(written, file, {"format": "pt"})
    model, random = models.image_encoder(tower.options), np.random.default_rng(3)
    for size in ((56, 112), (75, 106)):
        # One for each size: it keeps the window and the shift that a small map has made it take.
        loaded, info = transformers.SwinModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        x = random.normal(size=(2, *size, channels)).astype(np.float32)
        pooled, stages = run(model, tower.variables, x)
        with torch.no_grad():
            outputs = loaded.eval()(
                torch.tensor(x.transpose(0, 3, 1, 2)),
                output_hidden_states=True,
                output_hidden_states_before_downsampling=True,
            )
        close(pooled, outputs.pooler_output)
        for stage, expected_map in zip(model.stage_names, outputs.reshaped_hidden_states, strict=True):
            close(stages[stage], expected_map.numpy().transpose(0, 2, 3, 1))
    assert all(value.equal(theirs.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parity
def test_files_of_older_versions_are_read_as_transformers_does(tmp_path):
    """With the index of relative positions, which follows from the window: transformers leaves it out as well."""
    transformers = library("transformers")
    state = random_state() | {
        BLOCK + "attention.self.relative_position_index": position_index(7),
        "pooler.weight": np.zeros(2, np.float32),
    }
    tower = naming.read(HUGGINGFACE, state)
    library("safetensors.numpy").save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = transformers.SwinConfig(embed_dim=8, depths=[2, 1], num_heads=[1, 2])
    loaded, info = transformers.SwinModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not info["missing_keys"] and info["unexpected_keys"] == {"pooler.weight"}
    assert set(tower.unused) == set(state) - set(random_state())
    index = loaded.encoder.layers[0].blocks[0].attention.relative_position_bias.relative_position_index
    assert np.array_equal(index.reshape(49, 49), position_index(7))


@pytest.mark.parity
@pytest.mark.parametrize("variant, window", [*((name, 7) for name in VARIANTS), ("base", 12), ("large", 12)])
def test_every_variant_has_the_keys_and_shapes_of_the_originals(variant, window):
    """From shapes alone."""
    torch, transformers = pytest.importorskip("torch"), library("transformers")
    width, depths, heads = VARIANTS[variant]
    with torch.device("meta"):
        theirs = transformers.SwinModel(
            transformers.SwinConfig(embed_dim=width, depths=list(depths), num_heads=list(heads), window_size=window)
        )
    revert = library("transformers.core_model_loading").revert_weight_conversion
    expected = shapes(revert(theirs, theirs.state_dict()))
    options = HUGGINGFACE.options(expected, None)
    assert options == {"variant": variant} | ({} if window == 7 else {"window": window})
    assert layout(options) == expected
    epsilons = {module.eps for module in theirs.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert epsilons == {models.image_encoder({"name": "swin"} | options).layer_norm_eps}


# --- without PyTorch --------------------------------------------------------------------------------------------------


def test_tiny_is_known_by_its_shapes_and_by_its_config():
    """27,519,354 parameters, as of timm's without its classifier."""
    found = layout({"variant": "tiny"})
    assert sum(int(np.prod(shape)) for shape in found.values()) == 27_519_354
    config = {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "mlp_ratio": 4.0,
        "layer_norm_eps": 1e-5,
        "patch_size": 4,
    }
    assert HUGGINGFACE.options(found, None) == HUGGINGFACE.options(found, config) == {"variant": "tiny"}
    assert HUGGINGFACE.options(found, {"layer_norm_eps": 1e-6}) == {"variant": "tiny", "layer_norm_eps": 1e-6}


@pytest.mark.parametrize(
    "channels, options", [(3, {}), (1, {"window": 5}), (4, {"depths": (1, 1, 2), "heads": (2, 2, 4)})], ids=str
)
def test_what_is_read_is_written_bit_for_bit(channels, options):
    state = random_state(channels, **options)
    tower = naming.read(HUGGINGFACE, state)
    assert tower.options == {"name": "swin"} | SMALL | options and tower.channels == channels
    written = naming.write(HUGGINGFACE, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    for key, value in state.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_signs_tell_the_namings_apart():
    keys = set(random_state())
    assert [name for name in names.NAMINGS if keys.issuperset(names.naming(name).signs)] == ["swin"]


def test_places_of_some_arrays():
    assert HUGGINGFACE.leaf("embeddings/patch_embeddings/projection/kernel") == (STEM, "conv", (0, 1))
    assert HUGGINGFACE.leaf("encoder/layers_0/downsample/reduction/kernel") == (
        "encoder.layers.0.downsample.reduction.weight",
        "dense",
        (0, 1),
    )
    assert HUGGINGFACE.leaf("encoder/layers_2/blocks_17/attention/output/dense/bias").key == (
        "encoder.layers.2.blocks.17.attention.output.dense.bias"
    )
    assert HUGGINGFACE.leaf("encoder/layers_0/blocks_0/attention/self/relative_position_bias_table").key == TABLE
    assert HUGGINGFACE.leaf("layernorm/scale").key == "layernorm.weight"


def test_keys_without_a_counterpart():
    more = {
        BLOCK + "attention.self.relative_position_index",
        "embeddings.mask_token",
        "pooler.dense.weight",
        "classifier.weight",
        "classifier.bias",
    }
    assert set(naming.read(HUGGINGFACE, random_state() | {key: np.zeros(3) for key in more}).unused) == more


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state.pop(BLOCK + "output.dense.bias"), f"missing {BLOCK}output.dense.bias"),
        (lambda state: state.pop("layernorm.weight"), "missing layernorm.weight"),  # Donut's has none
        (
            lambda state: state.update({"embeddings.position_embeddings": np.zeros(2)}),
            "unused embeddings.position_embed",
        ),
        (lambda state: state.update({BLOCK + "intermediate.dense.bias": np.zeros(16)}), r"intermediate.*bias.*\(16,\)"),
        (lambda state: state.update({STEM: np.zeros((8, 3, 2, 2))}), r"\(8, 3, 2, 2\).*4 x 4"),
        (lambda state: state.update({TABLE: np.zeros((168, 1))}), "168 rows.*169 of 7 x 7"),
        (lambda state: state.update({TABLE: np.zeros((144, 1))}), "144 rows"),
        (lambda state: state.update({TABLE: np.zeros(169)}), "8 channels: no multiple of its 169 heads"),
        (
            lambda state: state.update({TABLE.replace("layers.0", "layers.1"): np.zeros((25, 2))}),
            r"layers.1.*\(25, 2\)",
        ),
        (lambda state: state.pop(TABLE), f"no {TABLE}"),
        (lambda state: state.pop(STEM), f"no {STEM}"),
    ],
)
def test_what_does_not_fit_is_named(spoil, message):
    state = random_state()
    spoil(state)
    with pytest.raises(UserError, match=message):
        naming.read(HUGGINGFACE, state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "swinv2"}, "model_type swinv2.*swin"),
        ({"embed_dim": 96}, "embed_dim 96.*has 8"),
        ({"depths": (2, 2)}, r"depths \(2, 2\).*\[2, 1\]"),
        ({"num_heads": [2, 2]}, r"num_heads \[2, 2\].*\[1, 2\]"),
        ({"window_size": 12}, "window_size 12.*has 7"),
        ({"mlp_ratio": 2.0}, "mlp_ratio 2.0"),
        ({"hidden_act": "relu"}, "hidden_act relu.*gelu"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings True"),
    ],
)
def test_configs_of_another_network_are_refused(change, message):
    config, found = {"model_type": "swin", "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}, layout(SMALL)
    assert HUGGINGFACE.options(found, config) == SMALL
    with pytest.raises(UserError, match=message):
        HUGGINGFACE.options(found, config | change)
