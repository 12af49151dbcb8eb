"""Mammo-CLIP's downstream state dicts: what is read computes the same in PyTorch, and what is written is the same again.

The PyTorch detector is that of tests/torch_retinanet.py, on B2 and B5 as published; the classifier is
`efficientnet_pytorch`'s B2 with a linear head.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.names import downstream
from mammoclip_jax.weights.naming import traced

DETECTOR = {
    "b5": {
        "image": {"name": "efficientnet", "variant": "b5", "pads": "detector", "taps": [37]},
        "stages": ["stage5", "block37", "head"],
    },
    "b2": {
        "image": {"name": "efficientnet", "variant": "b2", "pads": "detector", "taps": [21]},
        "stages": ["stage5", "block21", "head"],
    },
}
# With one class and two, of the published detector without the _fc that nothing calls.
PARAMETERS = {("b5", 1): 40_945_501, ("b5", 2): 40_966_246, ("b2", 1): 18_612_015}
TENSORS = {"b5": 890, "b2": 544}
CLASSIFIER = {
    "image": {"name": "efficientnet", "variant": "b2"},
    "labels": ["A", "B", "C", "D"],
    "activation": "softmax",
    "dtype": "float32",
}
HEAD = "classifier.classification_head."


def meta(model):
    return {"config": {"model": model}}


def detector_options(variant, classes=1):
    return DETECTOR[variant] | {"labels": [f"class_{i}" for i in range(classes)], "dtype": "float32"}


def shapes(module):
    return traced(module, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))


def random_variables(module):
    """Variables of the right shapes; every array is different."""
    random = np.random.default_rng(0)
    return unflatten_dict(
        {name: random.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes(module).items()}, sep="/"
    )


def equal(ours, theirs):
    ours, theirs = (flatten_dict(tree, sep="/") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def detector_state():
    model = detector_options("b2", 2)
    variables = random_variables(models.detector(model))
    return variables, downstream.write_detector(variables, meta(model))["state_dict"]


@pytest.fixture(scope="module")
def classifier_state():
    variables = random_variables(models.classifier(CLASSIFIER))
    return variables, downstream.write_classifier(variables, meta(CLASSIFIER))["model"]


# --- without torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant, classes", PARAMETERS)
def test_parameter_counts(variant, classes):
    leaves = shapes(models.detector(detector_options(variant, classes)))
    assert sum(leaf.size for name, leaf in leaves.items() if name.startswith("params/")) == PARAMETERS[variant, classes]


def test_detector_written_is_read_again(detector_state):
    variables, state = detector_state
    assert downstream.is_detector(state) and not downstream.is_classifier(state) and len(state) == TENSORS["b2"]
    options, again, unused = downstream.read_detector(state)
    assert options == DETECTOR["b2"] | {"classes": 2}
    equal(again, variables)
    assert {key for key in unused if not key.endswith("num_batches_tracked")} == {
        "efficientnet._fc.weight",
        "efficientnet._fc.bias",
    }
    assert state["efficientnet._fc.weight"].shape == (2, 1408)


def test_detector_keys_hold_what_their_names_say(detector_state):
    """Spot checks of the layout, so that a mistake made in both directions is seen."""
    variables, state = detector_state
    params = variables["params"]
    np.testing.assert_array_equal(
        state["classificationModel.output.weight"][5, 7], params["classification"]["output"]["kernel"][:, :, 7, 5]
    )
    np.testing.assert_array_equal(state["regressionModel.conv3.bias"], params["regression"]["conv3"]["bias"])
    np.testing.assert_array_equal(state["fpn.P4_1.weight"][:, :, 0, 0].T, params["fpn"]["P4_1"]["kernel"][0, 0])
    np.testing.assert_array_equal(
        state["efficientnet._blocks.21._bn2.running_var"],
        variables["batch_stats"]["image_encoder"]["block21"]["project_bn"]["var"],
    )


def test_classifier_written_is_read_again(classifier_state):
    variables, state = classifier_state
    assert downstream.is_classifier(state) and not downstream.is_detector(state)
    options, again, unused = downstream.read_classifier(state)
    assert options["variant"] == "b2" and options.get("pads", "nominal") == "nominal"
    equal(again, variables)
    assert all(key.endswith("num_batches_tracked") for key in unused)
    np.testing.assert_array_equal(state[HEAD + "weight"].T, variables["params"]["classification_head"]["kernel"])


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, "fpn.P6.bias"), "fpn.P6.bias"),
        (lambda s: without(s, "efficientnet._blocks.3._bn1.running_mean"), "_bn1.running_mean"),
        (lambda s: s | {"domainModel.conv1.weight": np.zeros(3)}, "domainModel.conv1.weight"),
        (lambda s: s | {"regressionModel.conv2.weight": np.zeros((256, 128, 3, 3))}, "regressionModel.conv2.weight"),
        (lambda s: s | {"regressionModel.output.bias": np.zeros(24)}, "regressionModel.output.bias"),
        (
            lambda s: s | {"classificationModel.output.weight": np.zeros((20, 256, 3, 3))},
            "classificationModel.output.weight",
        ),
    ],
)
def test_detector_that_does_not_fit_is_refused(detector_state, change, message):
    with pytest.raises(UserError, match=message):
        downstream.read_detector(change(detector_state[1]))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, HEAD + "bias"), "classification_head.bias"),
        (lambda s: s | {"mapper.weight": np.zeros(3)}, "mapper.weight"),
        (lambda s: s | {HEAD + "bias": np.zeros(3)}, "do not belong together"),
        (lambda s: s | {HEAD + "weight": np.zeros((4, 2048))}, "2048.*1408"),
    ],
)
def test_classifier_that_does_not_fit_is_refused(classifier_state, change, message):
    with pytest.raises(UserError, match=message):
        downstream.read_classifier(change(classifier_state[1]))


@pytest.mark.parametrize(
    "image, message",
    [
        ({"variant": "b0"}, "b5 and b2"),
        ({"pads": "nominal"}, "pads is 'nominal'.*'detector'"),
        ({"pooling": "gem"}, "pooling is 'gem'"),
        ({"name": "resnet"}, "resnet"),
    ],
)
def test_what_the_published_detector_cannot_be_is_not_written(image, message):
    model = detector_options("b2")
    with pytest.raises(UserError, match=message):
        downstream.write_detector({}, meta(model | {"image": model["image"] | image}))


def test_other_stages_are_not_written():
    with pytest.raises(UserError, match="stage7"):
        downstream.write_detector({}, meta(detector_options("b2") | {"stages": ["stage5", "stage7", "head"]}))


def test_classifier_with_other_pads_is_not_written():
    image = CLASSIFIER["image"] | {"pads": "same"}
    with pytest.raises(UserError, match="pads is 'same'.*'nominal'"):
        downstream.write_classifier({}, meta(CLASSIFIER | {"image": image}))


# --- against torch ----------------------------------------------------------------------------------------------------


def numpy_state(net):
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


def torch_image(shape):
    import torch

    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return image, torch.tensor(image.transpose(0, 3, 1, 2))


def detector_module():
    pytest.importorskip("efficientnet_pytorch")
    pytest.importorskip("torch")
    import torch_retinanet

    return torch_retinanet


@pytest.mark.parity
@pytest.mark.parametrize("variant", DETECTOR)
def test_state_dict_has_the_published_keys_and_shapes(variant):
    """Key for key what PyTorch's module has, strict; and the numbers of parameters."""
    published = detector_module().published
    import torch

    with torch.device("meta"):
        theirs = published(variant, 1)
    wanted = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert len(wanted) == TENSORS[variant]
    count = sum(p.numel() for name, p in theirs.named_parameters() if "_fc" not in name)
    assert count == PARAMETERS[variant, 1]
    model = detector_options(variant)
    zeros = unflatten_dict(
        {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in shapes(models.detector(model)).items()},
        sep="/",
    )
    state = downstream.write_detector(zeros, meta(model))["state_dict"]
    assert {key: value.shape for key, value in state.items()} == wanted


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("variant, sizes", [("b2", [(1, 128, 128, 3), (2, 96, 160, 3)]), ("b5", [(1, 96, 160, 3)])])
def test_detector_equals_torch(variant, sizes):
    """Probabilities and regressions where every level has even sides, and where P6 and P7 have odd ones."""
    module = detector_module()
    import torch

    theirs = module.published(variant, 2)
    module.randomise(theirs)
    options, variables, _ = downstream.read_detector(numpy_state(theirs))
    model = models.detector(options | {"labels": ["mass", "calcification"], "dtype": "float32"})
    run = jax.jit(model.apply)
    for size in sizes:
        ours, x = torch_image(size)
        logits, regressions = run(variables, ours)
        with torch.no_grad():
            expected, expected_regressions = theirs(x)
        assert expected.std() > 0.3 and expected_regressions.std() > 0.3  # else agreement says nothing
        np.testing.assert_allclose(jax.nn.sigmoid(logits), torch.sigmoid(expected), atol=1e-4)
        np.testing.assert_allclose(
            regressions, expected_regressions, atol=1e-4 * float(expected_regressions.std()) + 1e-4
        )
    theirs.load_state_dict(
        {
            key: torch.tensor(value)
            for key, value in downstream.write_detector(variables, meta(detector_options(variant, 2)))[
                "state_dict"
            ].items()
        },
        strict=True,
    )
    with torch.no_grad():
        torch.testing.assert_close(theirs(x)[0], expected, rtol=0, atol=0)


@pytest.mark.parity
@pytest.mark.slow
def test_classifier_equals_torch():
    module = detector_module()
    import efficientnet_pytorch
    import torch
    from torch import nn

    encoder = efficientnet_pytorch.EfficientNet.from_name("efficientnet-b2", include_top=False)
    encoder._fc = nn.Identity()
    head = nn.ModuleDict({"classification_head": nn.Linear(1408, 4)})
    theirs = nn.ModuleDict({"image_encoder": encoder, "classifier": head})
    module.randomise(theirs)
    state = numpy_state(theirs)
    options, variables, _ = downstream.read_classifier(state)
    ours, x = torch_image((2, 128, 96, 3))
    logits, _ = jax.jit(models.classifier(CLASSIFIER | {"image": options}).apply)(variables, ours)
    with torch.no_grad():
        expected = head["classification_head"](encoder.eval()(x).flatten(1))
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    written = downstream.write_classifier(variables, meta(CLASSIFIER))["model"]
    theirs.load_state_dict({key: torch.tensor(value) for key, value in written.items()}, strict=True)
    for key, value in written.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, state[key], err_msg=key)
