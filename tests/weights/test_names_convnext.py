"""ConvNeXt's namings: state dicts of transformers, of timm and of its authors.

Live (parity): networks with random weights, read through their naming, give the same features; what is written loads
strictly. All published variants have the keys and shapes that the tables say, and timm has none that is accepted and
computes something else. The authors' code is in no package: timm's own reading of their files stands for it. Without
PyTorch: what is written is read back bit for bit, counts of keys and parameters, places by hand, and the errors.
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
from mammoclip_jax.models.convnext import VARIANTS
from mammoclip_jax.weights import names, naming
from mammoclip_jax.weights.names.convnext import AUTHORS, HUGGINGFACE, TIMM

NAMINGS = {"convnext": HUGGINGFACE, "convnext/timm": TIMM, "convnext/authors": AUTHORS}
SMALL = {"width": 8, "depths": (1, 2, 1, 1)}
PUBLISHED = {name: {"variant": name} for name in VARIANTS} | {"xlarge": {"width": 256, "depths": (3, 3, 27, 3)}}
# Without their classifier: the authors' 28.6, 50.2, 88.6 and 197.8 million to the last one, less 1000 classes.
PARAMETERS = {
    "tiny": 28_589_128 - 769_000,
    "small": 50_223_688 - 769_000,
    "base": 88_591_464 - 1_025_000,
    "large": 197_767_336 - 1_537_000,
}
# Options that the files do not tell: transformers' configs say so.
EPSILON = {"convnext": {"layer_norm_eps": 1e-12}, "convnext/timm": {}, "convnext/authors": {}}


def zeros(table, options, channels=3):
    """Variables of this encoder without memory behind them."""
    leaves = abstract(table, options, channels)
    return unflatten_dict({path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in leaves.items()}, sep="/")


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# --- live -------------------------------------------------------------------------------------------------------------


def timm(architecture, **options):
    theirs = library("timm").create_model(architecture, num_classes=0, **options)
    return TIMM, theirs, theirs.forward_features, theirs, {"architecture": architecture}


def huggingface(with_config=True, **options):
    package = library("transformers")
    config = package.ConvNextConfig(**options)
    theirs = package.ConvNextModel(config)
    return (
        HUGGINGFACE,
        theirs,
        lambda x: theirs(x).last_hidden_state,
        lambda x: theirs(x).pooler_output,
        config.to_dict() if with_config else None,
    )


WIDTHS = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 2, 1, 1]}
CASES = {
    "timm": (timm, {"architecture": "convnext_tiny", "dims": (8, 16, 32, 64), "depths": (1, 2, 1, 1)}, SMALL),
    "timm, one channel": (
        timm,
        {"architecture": "convnext_base", "dims": (4, 8, 16, 32), "depths": (1, 1, 1, 1), "in_chans": 1},
        {"width": 4, "depths": (1, 1, 1, 1)},
    ),
    "huggingface": (huggingface, WIDTHS, SMALL | {"layer_norm_eps": 1e-12}),
    "huggingface, no config": (huggingface, {"with_config": False, **WIDTHS}, SMALL | {"layer_norm_eps": 1e-12}),
    "huggingface, three stages": (
        huggingface,
        {"hidden_sizes": [8, 16, 32], "depths": [1, 1, 2], "num_stages": 3, "layer_norm_eps": 0.1},
        {"width": 8, "depths": (1, 1, 2), "layer_norm_eps": 0.1},
    ),
    "timm tiny": (timm, {"architecture": "convnext_tiny"}, {"variant": "tiny"}),
}


def randomise(theirs):
    """Kernels that keep the size of activations, norms and layer scales near one, so that every block counts."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for key, value in theirs.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif key.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
        else:
            value.uniform_(0.8, 1.2, generator=generator)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, train):
    pooled, stages = model.apply(variables, x, train=train)
    return pooled, stages[model.stage_names[-1]]


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name.endswith("tiny") else ()) for name in CASES]
)
def test_features_equal_the_originals(case):
    """Evaluation at a size that no patch fills, training at another; written back, strictly."""
    build, arguments, expected_options = CASES[case]
    torch = pytest.importorskip("torch")
    table, theirs, features, pool, config = build(**arguments)
    randomise(theirs)
    state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    tower = naming.read(table, state, config)
    assert tower.options == {"name": "convnext"} | expected_options
    assert tower.channels == arguments.get("in_chans", 3) and not tower.unused
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(np.array_equal(written[key], state[key]) for key in state)
    model = models.image_encoder(tower.options | {"drop_path_rate": 0.0, "depthwise": "native"})
    random = np.random.default_rng(3)
    for train, size in ((False, (97, 75)), (True, (64, 128))):
        x = random.normal(size=(2, *size, tower.channels)).astype(np.float32)
        pooled, last = run(model, tower.variables, x, train)
        theirs.train(train)
        with torch.no_grad():
            image = torch.tensor(x.transpose(0, 3, 1, 2))
            close(last, features(image).numpy().transpose(0, 2, 3, 1))
            close(pooled, pool(image).numpy())
    theirs.load_state_dict({key: torch.tensor(value) for key, value in written.items()}, strict=True)


@pytest.mark.parity
def test_files_of_the_authors_are_what_timm_reads_in_them():
    """timm turns the authors' keys into its own; through both namings they are the same arrays."""
    torch, package = pytest.importorskip("torch"), library("timm")
    _, theirs, *_ = timm(**CASES["timm"][1])
    randomise(theirs)
    state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    tower = naming.read(TIMM, state)
    original = naming.write(AUTHORS, tower.variables, tower.options)
    turned = package.models.convnext.checkpoint_filter_fn(
        {key: torch.tensor(value) for key, value in original.items()}, theirs
    )
    assert turned.keys() == state.keys()
    assert all(np.array_equal(turned[key].numpy(), state[key]) for key in state)
    again = naming.read(AUTHORS, original)
    assert again.options == tower.options
    jax.tree.map(np.testing.assert_array_equal, again.variables, tower.variables)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variant_has_the_keys_and_shapes_of_the_originals(name):
    torch = pytest.importorskip("torch")
    counts, width = VARIANTS[name] if name in VARIANTS else ((3, 3, 27, 3), 256)
    for build, arguments in (
        (timm, {"architecture": f"convnext_{name}"}),
        (huggingface, {"hidden_sizes": [width * 2**i for i in range(4)], "depths": [*counts]}),
    ):
        with torch.device("meta"):
            table, theirs, _, _, config = build(**arguments)
        expected = shapes(theirs.state_dict())
        options = table.options(expected, config)
        assert options == table.options(expected, None)
        assert options == PUBLISHED[name] | ({"layer_norm_eps": 1e-12} if table is HUGGINGFACE else {})
        assert shapes(naming.write(table, zeros(table, options), options)) == expected


@pytest.mark.parity
@pytest.mark.slow
def test_no_network_of_timm_is_taken_for_another():
    """Those that are accepted have what our network has and no key tells; their arrays at one block a stage."""
    torch, package = pytest.importorskip("torch"), library("timm")
    accepted = set()
    for architecture in (*package.list_models(module="convnext"), *package.list_models(module="edgenext")):
        with torch.device("meta"):
            theirs = package.create_model(architecture, num_classes=0)
            single = package.create_model(architecture, num_classes=0, depths=(1, 1, 1, 1))
        found, arrays = shapes(theirs.state_dict()), shapes(single.state_dict())
        assert set(found).issuperset(TIMM.signs)
        try:
            options = TIMM.options(found, None) | {"depths": (1, 1, 1, 1)}
        except UserError:
            continue
        if shapes(naming.write(TIMM, zeros(TIMM, options), options)) != {
            key: shape for key, shape in arrays.items() if not key.startswith("head.pre_logits.")
        }:
            continue
        accepted.add(architecture)
        assert {module.eps for module in theirs.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
        activations = {block.mlp.act for stage in theirs.stages for block in stage.blocks}
        assert {(type(act).__name__, getattr(act, "approximate", "none")) for act in activations} == {("GELU", "none")}
        assert all(stage.blocks[0].conv_dw.dilation == (1, 1) for stage in theirs.stages)
    assert accepted == {f"convnext_{name}" for name in (*PUBLISHED, "large_mlp")}


# --- without PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("who", NAMINGS)
def test_numbers_of_keys_and_parameters(who, variant):
    """Nine arrays a block, four for the stem and for each halving, two for the last norm."""
    state = naming.write(NAMINGS[who], zeros(NAMINGS[who], {"variant": variant}), {"variant": variant})
    assert len(state) == 9 * sum(VARIANTS[variant].depths) + 4 * 4 + 2
    assert sum(value.size for value in state.values()) == PARAMETERS[variant]


def random_state(who, options, channels=3):
    table, random = NAMINGS[who], np.random.default_rng(0)
    state = naming.write(table, zeros(table, options, channels), options)
    return {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes(state).items()}


@pytest.mark.parametrize("who", NAMINGS)
@pytest.mark.parametrize(
    "options, channels",
    [(SMALL, 1), ({"width": 4, "depths": (1, 11)}, 3), ({"variant": "tiny"}, 4)],
    ids=["small", "two stages", "tiny"],
)
def test_what_is_read_is_written_bit_for_bit(who, options, channels):
    table, state = NAMINGS[who], random_state(who, options, channels)
    tower = naming.read(table, state)
    assert tower.options == {"name": "convnext"} | options | EPSILON[who]
    assert tower.channels == channels and not tower.unused
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    for key, value in state.items():
        assert np.array_equal(written[key], value), key
    classifier = {"convnext": "classifier", "convnext/timm": "head.fc", "convnext/authors": "head"}[who] + ".weight"
    assert naming.read(table, state | {classifier: np.zeros((5, 7))}).unused == [classifier]


@pytest.mark.parametrize("who", NAMINGS)
def test_signs_tell_the_namings_apart(who):
    keys = set(random_state(who, SMALL))
    assert [other for other in names.NAMINGS if keys.issuperset(names.naming(other).signs)] == [who]


@pytest.mark.parametrize(
    "other, options",
    [
        *((name, {"variant": "b0"}) for name in names.NAMINGS if name.startswith("efficientnet")),
        *((name, {"variant": "18"}) for name in names.NAMINGS if name.startswith("resnet")),
        (
            "clip_text",
            {
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 8,
                "max_position_embeddings": 8,
                "vocab_size": 8,
            },
        ),
    ],
)
def test_signs_are_in_no_other_encoder(other, options):
    table = names.naming(other)
    keys = set(naming.write(table, zeros(table, options, 3 if table.stem else 0), options))
    assert not any(keys.issuperset(mine.signs) for mine in NAMINGS.values())


def test_places_of_some_arrays():
    """By hand: halvings are counted by their stage, and within it as a norm and a convolution."""
    path = "encoder/stages_2/layers_11"
    assert TIMM.leaf(f"{path}/dwconv/kernel") == ("stages.2.blocks.11.conv_dw.weight", "depthwise", (0, 1))
    assert TIMM.leaf(f"{path}/pwconv2/kernel") == ("stages.2.blocks.11.mlp.fc2.weight", "dense", (0, 1))
    assert TIMM.leaf(f"{path}/layer_scale_parameter") == ("stages.2.blocks.11.gamma", "same", (0, 1))
    assert TIMM.leaf("encoder/stages_1/downsampling_layer_1/kernel") == ("stages.1.downsample.1.weight", "conv", (0, 1))
    assert TIMM.leaf("layernorm/scale").key == "head.norm.weight"
    assert AUTHORS.leaf(f"{path}/pwconv1/bias").key == "stages.2.11.pwconv1.bias"
    assert AUTHORS.leaf("encoder/stages_3/downsampling_layer_0/bias").key == "downsample_layers.3.0.bias"
    assert AUTHORS.leaf("embeddings/layernorm/scale").key == "downsample_layers.0.1.weight"
    assert HUGGINGFACE.leaf(f"{path}/layer_scale_parameter").key == "encoder.stages.2.layers.11.layer_scale_parameter"
    assert HUGGINGFACE.leaf("encoder/stages_1/downsampling_layer_0/scale").key == (
        "encoder.stages.1.downsampling_layer.0.weight"
    )
    with pytest.raises(UserError, match="no place for encoder/stages_0/grn/scale"):
        HUGGINGFACE.leaf("encoder/stages_0/grn/scale")


def test_other_networks_are_refused_with_the_reason():
    state = random_state("convnext/timm", SMALL)
    gamma = "stages.1.blocks.1.gamma"
    grn = {key: value for key, value in state.items() if key != gamma} | {
        "stages.1.blocks.1.mlp.grn.weight": np.ones(64, np.float32)
    }  # as ConvNeXt V2 has it
    with pytest.raises(UserError, match=r"missing stages\.1\.blocks\.1\.gamma\. unused .*mlp\.grn\.weight\. Is it"):
        naming.read(TIMM, grn)
    with pytest.raises(UserError, match=r"gamma has the shape \(3,\)"):
        naming.read(TIMM, state | {gamma: np.ones(3, np.float32)})
    with pytest.raises(UserError, match="stem.0.weight is missing.*4 x 4"):
        naming.read(TIMM, {f"visual.trunk.{key}": value for key, value in state.items()})
    with pytest.raises(UserError, match=r"stem.0.weight has the shape \(8, 3, 3, 3\).*convnext_nano_ols"):
        naming.read(TIMM, state | {"stem.0.weight": np.ones((8, 3, 3, 3), np.float32)})
    xxlarge = shapes(naming.write(TIMM, zeros(TIMM, {"width": 384, "depths": (3, 4, 30, 3)}), {}))
    with pytest.raises(UserError, match="convnext_xxlarge.*1e-5.*1e-6"):
        TIMM.options(xxlarge, None)


def test_convolutions_in_place_of_linear_layers_may_be_reshaped_as_the_message_says():
    state = random_state("convnext/timm", SMALL)
    nano = {
        key: value[..., None, None] if ".mlp.fc" in key and value.ndim == 2 else value for key, value in state.items()
    }
    with pytest.raises(UserError, match=r"mlp\.fc1\.weight has the shape \(32, 8, 1, 1\).*Reshape"):
        naming.read(TIMM, nano)
    again = {
        key: value.reshape(value.shape[:2]) if key.endswith(("mlp.fc1.weight", "mlp.fc2.weight")) else value
        for key, value in nano.items()
    }
    jax.tree.map(np.testing.assert_array_equal, naming.read(TIMM, again), naming.read(TIMM, state))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu_new"}, "hidden_act gelu_new.*gelu"),
        ({"hidden_sizes": [8, 16, 32, 96]}, "hidden_sizes"),
        ({"depths": [3, 3, 9, 3]}, r"depths \[3, 3, 9, 3\].*\[1, 2, 1, 1\]"),
        ({"num_stages": 3}, "num_stages 3"),
        ({"patch_size": 8}, "patch_size 8"),
    ],
)
def test_configs_of_transformers_that_are_another_network(change, message):
    config = {"hidden_sizes": (8, 16, 32, 64), "depths": [1, 2, 1, 1], "num_stages": 4, "hidden_act": "gelu"}
    found = shapes(random_state("convnext", SMALL))
    assert HUGGINGFACE.options(found, config) == SMALL | {"layer_norm_eps": 1e-12}
    assert HUGGINGFACE.options(found, config | {"layer_norm_eps": 1e-6})["layer_norm_eps"] == 1e-6
    with pytest.raises(UserError, match=message):
        HUGGINGFACE.options(found, config | change)
