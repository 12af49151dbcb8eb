"""ResNet's two namings: state dicts of torchvision and timm, which have the same keys, and of transformers.

Live (parity): networks with random weights, read through their naming, give the same features in evaluation and in
training, with the running statistics; what is written loads strictly. All published variants have the keys and shapes
that the tables say, and timm has none that is accepted and computes something else. Without PyTorch: what is written is
read back bit for bit, counts of keys and parameters, places by hand, and the errors.
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
from mammoclip_jax.models.resnet import VARIANTS
from mammoclip_jax.weights import names, naming
from mammoclip_jax.weights.names.resnet import HUGGINGFACE, TORCHVISION

NAMINGS = {"resnet": HUGGINGFACE, "resnet/torchvision": TORCHVISION}
SHALLOW = (1, 2, 1, 1)  # a block with a plain shortcut, and without
BASIC = {"variant": "18", "width": 8, "depths": SHALLOW}
BOTTLENECK = {"variant": "50", "width": 8, "depths": SHALLOW}


def zeros(table, options, channels=3):
    """Variables of this encoder without memory behind them."""
    leaves = abstract(table, options, channels)
    return unflatten_dict({path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in leaves.items()}, sep="/")


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# --- live -------------------------------------------------------------------------------------------------------------


def torchvision(variant="", bottleneck=False, depths=SHALLOW):
    """The published `variant`, or one of few blocks."""
    package = library("torchvision").models
    block = package.resnet.Bottleneck if bottleneck else package.resnet.BasicBlock
    theirs = getattr(package, f"resnet{variant}")() if variant else package.ResNet(block, depths)
    theirs.fc = None
    return TORCHVISION, theirs, library("torch").nn.Sequential(*theirs.children())[:-1], None


def timm(architecture, **options):
    theirs = library("timm").create_model(architecture, num_classes=0, **options)
    return TORCHVISION, theirs, theirs.forward_features, {"architecture": architecture}


def huggingface(variant="", with_config=True, **options):
    package = library("transformers")
    if variant:
        depths, bottleneck = VARIANTS[variant]
        options = {
            "depths": [*depths],
            "layer_type": "bottleneck" if bottleneck else "basic",
            "hidden_sizes": [(256 if bottleneck else 64) * 2**i for i in range(4)],
        }
    config = package.ResNetConfig(**options)
    theirs = package.ResNetModel(config)
    return HUGGINGFACE, theirs, lambda x: theirs(x).last_hidden_state, config.to_dict() if with_config else None


SMALL = {"embedding_size": 8, "depths": [*SHALLOW]}
CASES = {
    "torchvision 18": (torchvision, {"variant": "18"}, {"variant": "18"}),
    "torchvision, bottlenecks": (torchvision, {"bottleneck": True}, {"variant": "50", "depths": SHALLOW}),
    "timm, basic": (timm, {"architecture": "resnet18", "layers": SHALLOW}, {"variant": "18", "depths": SHALLOW}),
    "timm, bottlenecks": (
        timm,
        {"architecture": "resnet50", "layers": SHALLOW, "in_chans": 1},
        {"variant": "50", "depths": SHALLOW},
    ),
    "huggingface, basic": (huggingface, {"layer_type": "basic", "hidden_sizes": [8, 16, 32, 64], **SMALL}, BASIC),
    "huggingface, bottlenecks": (
        huggingface,
        {"with_config": False, "hidden_sizes": [32, 64, 128, 256], **SMALL},
        BOTTLENECK,
    ),
}


def randomise(theirs):
    """Kernels that keep the size of activations, statistics and norms near one."""
    import torch

    generator = torch.Generator().manual_seed(1)
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
    return pooled, stages["stage4"], new["batch_stats"]


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_originals(case):
    """Evaluation at an odd size; training at another, with the running statistics it leaves; written back, strictly."""
    build, arguments, expected_options = CASES[case]
    torch = pytest.importorskip("torch")
    table, theirs, features, config = build(**arguments)
    randomise(theirs)
    state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    tower = naming.read(table, state, config)
    assert tower.options == {"name": "resnet"} | expected_options
    assert tower.channels == arguments.get("in_chans", 3)
    assert all(key.endswith("num_batches_tracked") for key in tower.unused)
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    assert all(np.array_equal(written[key], state[key]) for key in state)
    model = models.image_encoder(tower.options)
    random = np.random.default_rng(3)
    for train, size in ((False, (97, 75)), (True, (64, 128))):
        x = random.normal(size=(2, *size, tower.channels)).astype(np.float32)
        pooled, last, stats = run(model, tower.variables, x, train)
        theirs.train(train)
        with torch.no_grad():
            expected = features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
        close(last, expected)
        close(pooled, expected.mean((1, 2)))
    new = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = naming.write(table, {"batch_stats": stats}, tower.options)
    assert {key for key in ours if "running" in key} == {key for key in new if "running" in key}
    for key, value in ours.items():
        if "running" in key:
            close(value, new[key], 1e-5)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in written.items()}, strict=True)


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("build, argument", [(torchvision, ""), (timm, "resnet"), (huggingface, "")])
def test_every_variant_has_the_keys_and_shapes_of_the_originals(build, argument, variant):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        table, theirs, _, config = build(argument + variant)
    expected = shapes(theirs.state_dict())
    options = table.options(expected, config)
    assert options == table.options(expected, None) == {"variant": variant}
    assert shapes(naming.write(table, zeros(table, options), options)) == expected


@pytest.mark.parity
def test_no_network_of_timm_is_taken_for_another():
    """Those that are accepted have what our network has and no key tells; with one block a stage, as all are alike."""
    torch, package = pytest.importorskip("torch"), library("timm")
    accepted = []
    for architecture in package.list_models(module="resnet"):
        with torch.device("meta"):
            theirs = package.create_model(architecture, num_classes=0, layers=(1, 1, 1, 1))
        found = shapes(theirs.state_dict())
        try:
            options = TORCHVISION.options(found, {"architecture": architecture})
        except UserError:
            continue
        if shapes(naming.write(TORCHVISION, zeros(TORCHVISION, options), options)) != found:
            continue
        accepted.append(architecture)
        block = theirs.layer2[0]
        assert isinstance(theirs.maxpool, torch.nn.MaxPool2d) and isinstance(theirs.act1, torch.nn.ReLU)
        assert (theirs.maxpool.kernel_size, theirs.maxpool.stride, theirs.maxpool.padding) == (3, 2, 1)
        assert [(block.conv1.stride, block.conv2.stride), block.downsample[0].stride] == [
            ((1, 1), (2, 2)) if hasattr(block, "conv3") else ((2, 2), (1, 1)),
            (2, 2),
        ]
        assert all(module.eps == 1e-5 for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d))
        extras = ("se", "aa", "drop_block", "drop_path")
        assert not any(
            getattr(block, name, None) and not isinstance(getattr(block, name), torch.nn.Identity) for name in extras
        )
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet26"} <= set(accepted)
    assert not {"resnetblur50", "resnetaa50", "resnet50d", "resnet50_gn", "wide_resnet50_2"} & set(accepted)


# --- without PyTorch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant, keys, parameters", [("18", 120, 11_176_512), ("50", 318, 23_508_032)])
def test_numbers_of_keys_and_parameters(variant, keys, parameters):
    """torchvision's documented 11 689 512 and 25 557 032, less the classifier's 513 and 2049 thousand."""
    for table in NAMINGS.values():
        state = naming.write(table, zeros(table, {"variant": variant}), {"variant": variant})
        assert len(state) == keys
        assert sum(value.size for key, value in state.items() if "running" not in key and value.ndim) == parameters


def random_state(who, options, channels=3):
    table, random = NAMINGS[who], np.random.default_rng(0)
    state = naming.write(table, zeros(table, options, channels), options)
    return {
        key: random.normal(size=shape).astype(np.float32) if shape else np.zeros((), np.int64)
        for key, shape in shapes(state).items()
    }


@pytest.mark.parametrize("who", NAMINGS)
@pytest.mark.parametrize("options, channels", [(BASIC, 1), (BOTTLENECK, 3), ({"variant": "18"}, 4)])
def test_what_is_read_is_written_bit_for_bit(who, options, channels):
    table, state = NAMINGS[who], random_state(who, options, channels)
    tower = naming.read(table, state)
    assert tower.options == {"name": "resnet"} | options and tower.channels == channels
    written = naming.write(table, tower.variables, tower.options)
    assert shapes(written) == shapes(state)
    for key, value in state.items():
        assert np.array_equal(written[key], value), key
    classifier = {"resnet": "classifier.1"}.get(who, "fc") + ".weight"
    assert classifier in naming.read(table, state | {classifier: np.zeros((5, 7))}).unused


@pytest.mark.parametrize("who", NAMINGS)
@pytest.mark.parametrize("options", [BASIC, BOTTLENECK])
def test_signs_tell_the_namings_apart(who, options):
    keys = set(random_state(who, options))
    assert [other for other in names.NAMINGS if keys.issuperset(names.naming(other).signs)] == [who]


@pytest.mark.parametrize(
    "other, options",
    [
        *((name, {"variant": "b0"}) for name in names.NAMINGS if name.startswith("efficientnet")),
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
    """By hand: which convolutions of a block are 1 x 1, and stages that count from 1 and from 0."""
    assert TORCHVISION.layers({}) == TORCHVISION.layers({"variant": "50"})
    assert TORCHVISION.layers(BOTTLENECK)["layer2_1"] == "bottleneck2_1" and TORCHVISION.layers(BASIC) == {}
    assert TORCHVISION.leaf("conv1/kernel") == ("conv1.weight", "conv", (0, 1))
    assert TORCHVISION.leaf("layer3_1/conv1/kernel") == ("layer3.1.conv1.weight", "conv", (0, 1))
    assert TORCHVISION.leaf("bottleneck3_1/conv1/kernel") == ("layer3.1.conv1.weight", "pointwise", (0, 1))
    assert TORCHVISION.leaf("bottleneck3_11/conv2/kernel") == ("layer3.11.conv2.weight", "conv", (0, 1))
    assert TORCHVISION.leaf("layer2_0/downsample_0/kernel") == ("layer2.0.downsample.0.weight", "pointwise", (0, 1))
    assert TORCHVISION.leaf("layer2_0/downsample_1/var").key == "layer2.0.downsample.1.running_var"
    assert HUGGINGFACE.leaf("bn1/mean").key == "embedder.embedder.normalization.running_mean"
    assert HUGGINGFACE.leaf("bottleneck4_2/conv3/kernel") == (
        "encoder.stages.3.layers.2.layer.2.convolution.weight",
        "pointwise",
        (0, 1),
    )
    assert HUGGINGFACE.leaf("layer1_0/downsample_1/scale").key == (
        "encoder.stages.0.layers.0.shortcut.normalization.weight"
    )


def test_projection_of_medclip():
    """Its `fc` without bias is no part of the encoder when read; an encoder that has it writes it."""
    state = random_state("resnet/torchvision", BOTTLENECK) | {"fc.weight": np.ones((5, 256), np.float32)}
    tower = naming.read(TORCHVISION, state)
    assert "fc.weight" in tower.unused and "fc" not in tower.options and "fc" not in tower.variables["params"]
    tower.variables["params"]["fc"] = {"kernel": np.ones((256, 5), np.float32)}
    written = naming.write(TORCHVISION, tower.variables, tower.options | {"fc": 5})
    assert all(np.array_equal(written[key], state[key]) for key in state)
    with pytest.raises(UserError, match="no place for fc/kernel"):
        naming.write(HUGGINGFACE, tower.variables, tower.options)


def test_other_networks_are_refused_with_the_reason():
    state = random_state("resnet/torchvision", BOTTLENECK)
    without = {key: value for key, value in state.items() if key != "layer2.0.bn3.running_var"}
    with pytest.raises(UserError, match=r"missing layer2\.0\.bn3\.running_var\. Is it"):
        naming.read(TORCHVISION, without)
    with pytest.raises(UserError, match=r"unused layer1\.0\.se\.fc1\.weight\. Is it"):
        naming.read(TORCHVISION, state | {"layer1.0.se.fc1.weight": np.ones((2, 8, 1, 1), np.float32)})
    grouped = state | {"layer1.0.conv2.weight": np.ones((8, 2, 3, 3), np.float32)}  # as ResNeXt has it
    with pytest.raises(UserError, match=r"layer1\.0\.conv2\.weight has the shape \(8, 2, 3, 3\)"):
        naming.read(TORCHVISION, grouped)
    with pytest.raises(UserError, match="conv1.weight is missing.*7 x 7"):
        naming.read(TORCHVISION, {f"module.{key}": value for key, value in state.items()})
    deep = {key: value for key, value in state.items() if key != "conv1.weight"} | {
        "conv1.0.weight": np.ones((4, 3, 3, 3), np.float32)
    }  # as timm's resnet50d has it
    assert names.detect(deep) == "resnet/torchvision"
    with pytest.raises(UserError, match="conv1.weight is missing.*resnet50d"):
        naming.read(TORCHVISION, deep)
    with pytest.raises(UserError, match=r"conv1.weight has the shape \(8, 3, 3, 3\).*7 x 7"):
        naming.read(TORCHVISION, state | {"conv1.weight": np.ones((8, 3, 3, 3), np.float32)})
    with pytest.raises(UserError, match="architecture resnetblur50.*smooths"):
        naming.read(TORCHVISION, state, {"architecture": "resnetblur50"})
    assert naming.read(TORCHVISION, state, {"architecture": "resnet50"}).options["variant"] == "50"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer_type": "basic"}, "layer_type basic.*bottleneck"),
        ({"embedding_size": 16}, "embedding_size 16.*8"),
        ({"hidden_sizes": [32, 64, 96, 128]}, "hidden_sizes"),
        ({"depths": [3, 4, 6, 3]}, "depths"),
        ({"hidden_act": "gelu"}, "hidden_act gelu.*relu"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage True"),
    ],
)
def test_configs_of_transformers_that_are_another_network(change, message):
    """With "v1", which strides in the first convolution of a bottleneck, is among them."""
    config = {
        "layer_type": "bottleneck",
        "embedding_size": 8,
        "hidden_sizes": (32, 64, 128, 256),
        "depths": [1, 2, 1, 1],
        "hidden_act": "relu",
        "num_channels": 3,
    }
    found = shapes(random_state("resnet", BOTTLENECK))
    assert HUGGINGFACE.options(found, config) == BOTTLENECK
    with pytest.raises(UserError, match=message):
        HUGGINGFACE.options(found, config | change)
