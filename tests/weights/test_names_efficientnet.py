"""EfficientNet's four namings: state dicts of efficientnet_pytorch, transformers, timm and torchvision.

Live (parity): networks with random weights, read through their naming, give the same features in evaluation and in
training, with the running statistics; what is written loads strictly. All published variants have the keys and shapes
that the tables say. Without PyTorch: what is written is read back bit for bit, key counts, and the errors.
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
from mammoclip_jax.models.efficientnet import VARIANTS, block_specs, pads
from mammoclip_jax.weights import naming
from mammoclip_jax.weights.names.efficientnet import HUGGINGFACE, LUKEMELAS
from mammoclip_jax.weights.names.efficientnet_staged import TIMM, TORCHVISION

NAMINGS = {"lukemelas": LUKEMELAS, "huggingface": HUGGINGFACE, "timm": TIMM, "torchvision": TORCHVISION}
FULL = [name for name, scaling in VARIANTS.items() if not scaling.lite]
LITE = [name for name, scaling in VARIANTS.items() if scaling.lite]
FIXED = {"drop_rate": 0.0, "drop_connect_rate": 0.0}
TINY = {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640, "image_size": 64}


def zeros(table, options, channels=3):
    """Variables of this encoder without memory behind them."""
    leaves = abstract(table, options, channels)
    return unflatten_dict({path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}, sep="/")


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# --- live -------------------------------------------------------------------------------------------------------------


def lukemelas(variant):
    theirs = library("efficientnet_pytorch").EfficientNet.from_name(f"efficientnet-{variant}", drop_connect_rate=0.0)
    theirs._fc = None
    return LUKEMELAS, theirs, theirs.extract_features, None


def lite(variant):
    theirs = library("efficientnet_lite_pytorch").EfficientNet.from_name(
        f"efficientnet-{variant}", drop_connect_rate=0.0
    )
    theirs._fc = None
    return LUKEMELAS, theirs, theirs.extract_features, None


def timm(architecture):
    theirs = library("timm").create_model(architecture, num_classes=0)
    return TIMM, theirs, theirs.forward_features, {"architecture": architecture}


def torchvision(variant):
    theirs = getattr(library("torchvision").models, f"efficientnet_{variant}")(stochastic_depth_prob=0.0)
    theirs.classifier = None
    return TORCHVISION, theirs, theirs.features, None


def huggingface(variant, **options):
    package = library("transformers")
    if not options:
        scaling = VARIANTS[variant]
        specs, table = block_specs(scaling.width, scaling.depth), pads(variant)
        options = {
            "width_coefficient": scaling.width,
            "depth_coefficient": scaling.depth,
            "image_size": scaling.size,
            "hidden_dim": abstract(HUGGINGFACE, {"variant": variant}, 3)["params/head/kernel"].shape[1],
        }
        options["depthwise_padding"] = [
            i for i, spec in enumerate(specs) if spec.stride == 2 and len(set(table[f"block{i:02d}"][0])) == 1
        ]
    config = package.EfficientNetConfig(drop_connect_rate=0.0, **options)
    theirs = package.EfficientNetModel(config)
    return HUGGINGFACE, theirs, lambda x: theirs(x).last_hidden_state, config.to_dict()


CASES = {
    "lukemelas b0": (lukemelas, ("b0",), {"variant": "b0"}),
    "lite0": (lite, ("lite0",), {"variant": "lite0"}),
    "timm b0": (timm, ("efficientnet_b0",), {"variant": "b0", "pads": "symmetric", "batch_norm_eps": 1e-5}),
    "timm tf b0": (timm, ("tf_efficientnet_b0",), {"variant": "b0", "pads": "same"}),
    "timm tf lite0": (timm, ("tf_efficientnet_lite0",), {"variant": "lite0", "pads": "same"}),
    "torchvision b0": (torchvision, ("b0",), {"variant": "b0", "pads": "symmetric", "batch_norm_eps": 1e-5}),
    "torchvision b5": (torchvision, ("b5",), {"variant": "b5", "pads": "symmetric", "batch_norm_eps": 1e-3}),
    "huggingface, even": (
        functools.partial(huggingface, depthwise_padding=[], **TINY),
        ("",),
        {"variant": "b0", "width": 0.5, "depth": 0.3, "pads": "nominal", "pooling": "avg", "batch_norm_eps": 1e-3},
    ),
    "huggingface, odd": (
        functools.partial(huggingface, depthwise_padding=[2, 3, 5], batch_norm_eps=1e-2, **TINY),
        ("",),
        {"variant": "b2", "width": 0.5, "depth": 0.3, "pads": "nominal", "pooling": "avg", "batch_norm_eps": 1e-2},
    ),
}


def randomise(theirs):
    """Kernels that keep the size of activations, statistics and norms near one; the momentum is ours everywhere."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.01
    for key, value in theirs.state_dict().items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            value.uniform_(0.8, 1.2, generator=generator)
        elif value.ndim:
            value.normal_(0, 0.1, generator=generator)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, train):
    (pooled, stages), new = model.apply(variables, x, train=train, mutable=["batch_stats"])
    return pooled, stages["head"], new["batch_stats"]


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name == "torchvision b5" else ()) for name in CASES]
)
def test_features_equal_the_originals(case):
    """Evaluation at an odd size; training at another, with the running statistics it leaves; written back, strictly."""
    build, arguments, expected_options = CASES[case]
    torch = pytest.importorskip("torch")
    table, theirs, features, config = build(*arguments)
    randomise(theirs)
    state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    tower = naming.read(table, state, config)
    assert tower.options == {"name": "efficientnet"} | expected_options and tower.channels == 3
    assert all(key.endswith("num_batches_tracked") for key in tower.unused)
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(np.array_equal(written[key], state[key]) for key in state)
    model = models.image_encoder(tower.options | FIXED)
    random = np.random.default_rng(3)
    for train, size in ((False, (97, 75)), (True, (64, 128))):
        x = random.normal(size=(2, *size, 3)).astype(np.float32)
        pooled, head, stats = run(model, tower.variables, x, train)
        theirs.train(train)
        with torch.no_grad():
            expected = features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
        close(head, expected)
        close(pooled, expected.mean((1, 2)))
    new = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = naming.write(table, {"batch_stats": stats}, tower.options)
    assert {key for key in ours if "running" in key} == {key for key in new if "running" in key}
    for key, value in ours.items():
        if "running" in key:
            close(value, new[key], 1e-5)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in written.items()}, strict=True)


@pytest.mark.parity
@pytest.mark.parametrize("kind, ours", [("mean", "avg"), ("max", "max")])
def test_pooled_features_of_transformers(kind, ours):
    torch = pytest.importorskip("torch")
    table, theirs, _, config = huggingface("", pooling_type=kind, **TINY)
    randomise(theirs)
    theirs.eval()
    tower = naming.read(table, {key: value.numpy() for key, value in theirs.state_dict().items()}, config)
    assert tower.options["pooling"] == ours
    x = np.random.default_rng(4).normal(size=(1, 80, 64, 3)).astype(np.float32)
    pooled, _, _ = run(models.image_encoder(tower.options | FIXED), tower.variables, x, False)
    with torch.no_grad():
        close(pooled, theirs(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output.numpy().reshape(1, -1))


@pytest.mark.parity
@pytest.mark.parametrize(
    "build, name, variant",
    [
        *((lukemelas, name, name) for name in FULL),
        *((lite, name, name) for name in LITE),
        *((torchvision, name, name) for name in FULL),
        *((huggingface, name, name) for name in FULL),
        *((timm, f"efficientnet_{name}", name) for name in (*FULL, *LITE)),
        *((timm, f"tf_efficientnet_{name}", name) for name in (*FULL, *LITE)),
    ],
)
def test_every_variant_has_the_keys_and_shapes_of_the_originals(build, name, variant):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        table, theirs, _, config = build(name)
    expected = shapes(theirs.state_dict())
    options = table.options(expected, config)
    assert options["variant"] == variant
    assert shapes(naming.write(table, zeros(table, options), options)) == expected
    norms = {module.eps for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert norms == {options.get("batch_norm_eps", 1e-3)}


# --- without PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant, count", [("b5", 852), ("b2", 506), ("b0", 358), ("lite0", 294)])
def test_numbers_of_keys(variant, count):
    """Mammo-CLIP's B5 and B2: specs of the published checkpoints; B0 and Lite0: 360 and 296 less the classifier's."""
    assert len(naming.write(LUKEMELAS, zeros(LUKEMELAS, {"variant": variant}), {"variant": variant})) == count


def random_state(who, variant, channels=3):
    table = NAMINGS[who]
    random = np.random.default_rng(0)
    state = naming.write(table, zeros(table, {"variant": variant}, channels), {"variant": variant})
    return {key: random.normal(size=value.shape).astype(value.dtype) for key, value in state.items()}


@pytest.mark.parametrize(
    "who, variant, channels",
    [
        ("lukemelas", "b0", 1),
        ("lukemelas", "lite1", 3),
        ("huggingface", "b0", 3),
        ("timm", "b1", 3),
        ("timm", "lite2", 1),
        ("torchvision", "b0", 4),
    ],
)
def test_what_is_read_is_written_bit_for_bit(who, variant, channels):
    table, state = NAMINGS[who], random_state(who, variant, channels)
    tower = naming.read(table, state)
    assert tower.options["variant"] == variant and tower.channels == channels
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    for key, value in state.items():
        assert key.endswith("num_batches_tracked") or np.array_equal(written[key], value), key
    classifier = {"lukemelas": "_fc", "torchvision": "classifier.1"}.get(who, "classifier") + ".weight"
    assert classifier in naming.read(table, state | {classifier: np.zeros((5, 7))}).unused


def test_signs_tell_the_namings_apart():
    for who, table in NAMINGS.items():
        keys = set(random_state(who, "b0"))
        assert [other for other, value in NAMINGS.items() if keys.issuperset(value.signs)] == [who]


def test_places_of_some_arrays():
    """By hand: B5's block 3 is the first of its second stage, and the first stage has no expansion."""
    layers = TIMM.layers({"variant": "b5"})
    assert (layers["block00"], layers["block03"], layers["block38"]) == ("stage1.0", "stage2.0", "stage7.2")
    assert LUKEMELAS.leaf("block03/se/reduce/kernel") == ("_blocks.3._se_reduce.weight", "pointwise", (0, 1))
    assert HUGGINGFACE.leaf("block03/depthwise/kernel").key == "encoder.blocks.3.depthwise_conv.depthwise_conv.weight"
    assert TIMM.leaf("stage1.2/project/kernel").key == "blocks.0.2.conv_pw.weight"
    assert TIMM.leaf("stage2.0/expand/kernel").key == "blocks.1.0.conv_pw.weight"
    assert TORCHVISION.leaf("stage1.2/project_bn/mean").key == "features.1.2.block.2.1.running_mean"
    assert TORCHVISION.leaf("stage7.0/project_bn/var").key == "features.7.0.block.3.1.running_var"


def test_classifier_of_timm_from_tensorflow_is_known_by_its_config():
    state = shapes(random_state("timm", "b0"))
    assert TIMM.options(state, {"architecture": "tf_efficientnet_b0", "num_classes": 2}) == {
        "variant": "b0",
        "pads": "same",
    }
    plain = {"variant": "b0", "pads": "symmetric", "batch_norm_eps": 1e-5}
    assert TIMM.options(state, {"architecture": "efficientnet_b0"}) == TIMM.options(state, None) == plain
    assert TORCHVISION.options(shapes(random_state("torchvision", "b0")), None) == plain


def test_unpublished_networks_are_refused_with_what_was_found():
    small = {"width": 0.25, "depth": 0.2}
    variables = zeros(LUKEMELAS, small)
    with pytest.raises(UserError, match="7 blocks, 80 channels .* 320 features and squeeze-excite.*b5 39, 512, 2048"):
        naming.read(LUKEMELAS, naming.write(LUKEMELAS, variables, small))
    state = random_state("lukemelas", "b0")
    without = {key: value for key, value in state.items() if "se_reduce" not in key}
    with pytest.raises(UserError, match="missing .*_se_reduce|unused .*_se_expand"):
        naming.read(LUKEMELAS, without)
    with pytest.raises(UserError, match="_conv_head.weight is missing"):
        naming.read(LUKEMELAS, {f"model.{key}": value for key, value in state.items()})
    with pytest.raises(UserError, match="no place for pool/exponent"):
        naming.write(LUKEMELAS, zeros(LUKEMELAS, {"pooling": "gem"}), {"variant": "b0"})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel_sizes": [3] * 7}, "kernel_sizes"),
        ({"hidden_act": "relu"}, "hidden_act relu.*swish"),
        ({"squeeze_expansion_ratio": 0.5}, "squeeze_expansion_ratio 0.5"),
        ({"pooling_type": "sum"}, "pooling_type 'sum'"),
        ({"depthwise_padding": [1]}, r"depthwise_padding \[1\]"),
        ({"width_coefficient": 0.25}, "block 0 as many output channels"),
        ({"width_coefficient": 1.4, "depth_coefficient": 1.8, "depthwise_padding": [6, 22]}, r"\[6, 22\]"),  # Lite4's
    ],
)
def test_configs_of_transformers_that_are_another_network(change, message):
    config = {"width_coefficient": 0.5, "depth_coefficient": 0.3, "depthwise_padding": []}
    assert HUGGINGFACE.options({}, config)["variant"] == "b0"
    with pytest.raises(UserError, match=message):
        HUGGINGFACE.options({}, config | change)


def test_pads_of_transformers_configs():
    """The lists of the published configs (B2 and B5), and none, which no published B5 has."""
    config = {"width_coefficient": 1.6, "depth_coefficient": 2.2}
    published = HUGGINGFACE.options({}, config | {"depthwise_padding": [13, 27]})
    assert (published["variant"], published["pads"]) == ("b5", "nominal") and "width" not in published
    assert HUGGINGFACE.options({}, config | {"depthwise_padding": []})["pads"] == "detector"
    config = {"width_coefficient": 1.1, "depth_coefficient": 1.2, "depthwise_padding": [5, 8, 16]}
    assert HUGGINGFACE.options({}, config)["pads"] == "nominal"


def test_options_are_those_of_the_encoder():
    model = models.image_encoder(naming.read(TIMM, random_state("timm", "lite0")).options)
    assert (model.variant, model.pads, model.batch_norm_eps) == ("lite0", "symmetric", 1e-5)
