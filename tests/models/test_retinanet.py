"""RetinaNet: anchors and boxes against naive loops and closed forms, the network against PyTorch's.

tests/golden/retinanet.npz holds what a small detector in PyTorch (tests/torch_retinanet.py) returns, whose weights
`random_variables` draws from fixed seeds, and the norms of its gradients. To make it again:
`PYTHONPATH=.:tests python tests/models/test_retinanet.py` (needs torch and efficientnet_pytorch).
"""

import functools
import itertools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.boxes import decode
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.retinanet import RetinaNet, Texts, anchors, grid_sizes, repeat_to

GOLDEN = Path(__file__).parent.parent / "golden" / "retinanet.npz"
CLASSES = 2
SIZE = (2, 64, 96, 3)  # the original takes multiples of 32
# Half the width: at a quarter, stage 1 has equal inputs and outputs, and a shortcut here that efficientnet_pytorch lacks.
# C4 from the middle of stage 6, as the published detectors have it from the middle of stage 7.
ENCODER = {
    "name": "efficientnet",
    "variant": "b0",
    "width": 0.5,
    "depth": 0.5,
    "pads": "detector",
    "taps": [7],
    "drop_rate": 0.0,
    "drop_connect_rate": 0.0,
}
STAGES = ("stage5", "block07", "head")
# Where the encoder is not the point: C3, C4, C5 are its last three stages.
LITTLE = {"name": "resnet", "variant": "18", "width": 4, "depths": (1, 1, 1, 1)}
LITTLE_STAGES = ("stage2", "stage3", "stage4")


def small(dtype=jnp.float32, image=ENCODER, stages=STAGES, **options):
    encoder = models.image_encoder(image, dtype)
    return RetinaNet(encoder, **{"stages": stages, "classes": CLASSES, "features": 8, "dtype": dtype} | options)


def shapes(model, size=64):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")


def random_variables(model, dtype=np.float32):
    """Variables drawn by NumPy, a seed for each name; kernels keep the size of activations about the same."""
    values = {}
    for name, leaf in shapes(model).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            value = random.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        elif kind in ("scale", "var"):
            value = random.uniform(0.8, 1.2, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * 0.1
        values[name] = value.astype(dtype)
    return unflatten_dict(values, sep="/")


def image(shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def output_weights(images, size=SIZE):
    """Fixed weights that turn both outputs into a scalar."""
    random = np.random.default_rng(7)
    count = len(anchors(*size[1:3]))
    return random.normal(size=(images, count, CLASSES)), random.normal(size=(images, count, 4))


@functools.partial(jax.jit, static_argnums=0)
def gradients(model, variables, x, weights):
    """Gradient of the weighted outputs in training mode by every parameter, and the outputs."""

    def objective(params):
        outputs, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(output * weight) for output, weight in zip(outputs, weights)), outputs

    return jax.grad(objective, has_aux=True)(variables["params"])


def close(ours, theirs, tolerance, absolute=0.0):
    """Largest difference relative to the largest value, beside an absolute part."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max() + absolute


# --- anchors and boxes ------------------------------------------------------------------------------------------------


def naive_anchors(height, width):
    boxes = []
    for level in (3, 4, 5, 6, 7):
        stride, size = 2**level, 2 ** (level + 2)
        for row, column in itertools.product(
            range((height + stride - 1) // stride), range((width + stride - 1) // stride)
        ):
            for ratio in (0.5, 1, 2):
                for scale in (1, 2 ** (1 / 3), 2 ** (2 / 3)):
                    area = (size * scale) ** 2
                    w = (area / ratio) ** 0.5
                    h = w * ratio
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return np.array(boxes)


@pytest.mark.parametrize("size", [(512, 512), (160, 96), (100, 333)])
def test_anchors_equal_a_loop(size):
    ours = anchors(*size)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, naive_anchors(*size), rtol=1e-6, atol=1e-4)
    assert len(ours) == 9 * sum(rows * columns for rows, columns in grid_sizes(*size))


def test_known_anchors():
    """At 512 x 512: their number, and the first square one, which is centred on pixel (4, 4) with sides of 32."""
    boxes = anchors(512, 512)
    assert len(boxes) == 49_104
    np.testing.assert_allclose(boxes[3], [-12, -12, 20, 20])
    np.testing.assert_allclose(boxes[0], [4 - 16 * 2**0.5, 4 - 8 * 2**0.5, 4 + 16 * 2**0.5, 4 + 8 * 2**0.5], rtol=1e-6)


def test_decode_is_the_closed_form_and_zero_gives_the_anchors():
    random = np.random.default_rng(0)
    boxes, deltas = anchors(64, 96), random.normal(size=(2, 1161, 4)).astype(np.float32)
    np.testing.assert_allclose(decode(np.zeros_like(deltas), boxes), np.broadcast_to(boxes, deltas.shape), atol=1e-4)
    decoded = np.asarray(decode(deltas, boxes))
    for image_index, i in [(0, 0), (1, 7), (1, 1000)]:
        left, top, right, bottom = boxes[i].astype(float)
        dx, dy, dw, dh = deltas[image_index, i].astype(float) * (0.1, 0.1, 0.2, 0.2)
        w, h = right - left, bottom - top
        x, y = (left + right) / 2 + dx * w, (top + bottom) / 2 + dy * h
        w, h = w * np.exp(dw), h * np.exp(dh)
        np.testing.assert_allclose(
            decoded[image_index, i], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-5, atol=1e-4
        )


def test_decoded_boxes_are_cut_to_the_image():
    boxes = anchors(64, 96)
    whole = decode(np.zeros_like(boxes), boxes)
    cut = np.asarray(decode(np.zeros_like(boxes), boxes, (64, 96)))
    np.testing.assert_array_equal(cut, np.clip(whole, 0, [96, 64, 96, 64]))
    assert (cut.max(0) == [cut[:, 0].max(), cut[:, 1].max(), 96, 64]).all() and cut.min() == 0


def test_repeat_to_cuts_and_fills_up():
    x = np.arange(4.0).reshape(1, 2, 2, 1)
    twice = np.kron(x[0, :, :, 0], np.ones((2, 2)))
    np.testing.assert_array_equal(repeat_to(x, 2, (4, 4))[0, :, :, 0], twice)
    np.testing.assert_array_equal(repeat_to(x, 2, (3, 4))[0, :, :, 0], twice[:3])
    np.testing.assert_array_equal(repeat_to(x, 2, (4, 5))[0, :, :, 0], np.pad(twice, ((0, 0), (0, 1)), mode="edge"))


# --- against torch ----------------------------------------------------------------------------------------------------


def torch_state(variables):
    """The variables by the keys of tests/torch_retinanet.py."""
    from mammoclip_jax.weights.names.efficientnet import LUKEMELAS
    from mammoclip_jax.weights.naming import write

    encoder = {name: tree["image_encoder"] for name, tree in variables.items() if "image_encoder" in tree}
    state = {f"efficientnet.{key}": value for key, value in write(LUKEMELAS, encoder, ENCODER).items()}
    for module, theirs in (
        ("fpn", "fpn"),
        ("regression", "regressionModel"),
        ("classification", "classificationModel"),
    ):
        for layer, arrays in variables["params"][module].items():
            state[f"{theirs}.{layer}.weight"] = arrays["kernel"].transpose(3, 2, 0, 1)
            state[f"{theirs}.{layer}.bias"] = arrays["bias"]
    return state


def torch_model(variables):
    pytest.importorskip("efficientnet_pytorch")
    torch = pytest.importorskip("torch")
    from torch_retinanet import Detector, backbone

    net = backbone("efficientnet-b0", CLASSES, width_coefficient=0.5, depth_coefficient=0.5)
    channels = [variables["params"]["fpn"][name]["kernel"].shape[2] for name in ("P3_1", "P4_1", "P5_1")]
    theirs = Detector(net, (6, 7), channels, CLASSES, features=8).to(torch.float64)
    missing, unexpected = theirs.load_state_dict(
        {key: torch.tensor(value) for key, value in torch_state(variables).items()}, strict=False
    )
    assert not unexpected and missing == ["efficientnet._fc.weight", "efficientnet._fc.bias"]
    return theirs


def torch_gradients(variables, x, weights):
    """Outputs in training mode and the gradients as ours, by our names."""
    import torch

    theirs = torch_model(variables).train()
    outputs = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    sum((output * torch.tensor(weight)).sum() for output, weight in zip(outputs, weights)).backward()
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    return [output.detach().numpy() for output in outputs], grads


def by_torch_names(grads, variables):
    """Our gradients under PyTorch's names: as variables, without the statistics."""
    state = torch_state({"params": jax.tree.map(np.asarray, grads), "batch_stats": variables["batch_stats"]})
    return {key: value for key, value in state.items() if not key.endswith(("_mean", "_var", "_tracked"))}


@pytest.mark.parity
def test_outputs_and_gradients_equal_torch():
    """In training mode, by every parameter, in float64."""
    with jax.enable_x64(True):
        model = small(jnp.float64)
        variables, x, weights = random_variables(model, np.float64), image(SIZE, np.float64), output_weights(SIZE[0])
        grads, outputs = gradients(model, variables, x, weights)
        expected, theirs = torch_gradients(variables, x, weights)
        for ours, output in zip(outputs, expected):
            close(ours, output, 1e-9)
        ours = by_torch_names(grads, variables)
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in theirs.items():
        close(ours[name], value, 1e-7, 1e-12 * largest)


def write_golden():
    """Outputs in training mode, and the norms of the gradients; computed in float64."""
    with jax.enable_x64(True):
        model = small(jnp.float64)
        variables = random_variables(model, np.float64)
        (logits, regressions), grads = torch_gradients(variables, image(SIZE, np.float64), output_weights(SIZE[0]))
    arrays = {"logits": logits[:1], "regressions": regressions[:1]}
    arrays |= {f"gradient_norm/{name}": np.linalg.norm(value) for name, value in grads.items()}
    np.savez_compressed(GOLDEN, **{name: np.float32(value) for name, value in arrays.items()})


def test_small_network_equals_golden():
    golden = dict(np.load(GOLDEN))
    with jax.enable_x64(True):
        model = small(jnp.float64)
        variables, x, weights = random_variables(model, np.float64), image(SIZE, np.float64), output_weights(SIZE[0])
        grads, (logits, regressions) = gradients(model, variables, x, weights)
        ours = {"logits": logits[:1], "regressions": regressions[:1]}
        ours |= {
            f"gradient_norm/{name}": np.linalg.norm(value) for name, value in by_torch_names(grads, variables).items()
        }
    assert set(golden) == set(ours)
    largest = max(value for name, value in golden.items() if name.startswith("gradient_norm"))
    for name, expected in golden.items():
        close(ours[name], expected, 1e-6, 1e-9 * largest if name.startswith("gradient_norm") else 0)


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_on_eight_devices_equal_one():
    with jax.enable_x64(True):
        model = small(jnp.float64, LITTLE, LITTLE_STAGES)
        variables, x = random_variables(model, np.float64), image((8, 32, 64, 3), np.float64)
        weights = output_weights(8, x.shape)
        alone, outputs_alone = gradients(model, variables, x, weights)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        x, weights = jax.device_put((x, weights), batch)
        together, outputs_together = gradients(model, jax.device_put(variables, copied), x, weights)
    jax.tree.map(functools.partial(close, tolerance=1e-9), outputs_together, outputs_alone)
    together, alone = (flatten_dict(tree, sep="/") for tree in (together, alone))
    largest = max(np.abs(value).max() for value in alone.values())
    for name, value in together.items():
        close(value, alone[name], 1e-7, 1e-12 * largest)


def test_starts_with_the_prior_and_the_anchors():
    """Every class has the probability 0.01 and every box is its anchor; other kernels have variance 2 / (k k out)."""
    model, x = small(jnp.float32, LITTLE, LITTLE_STAGES, features=64), image((1, 32, 64, 3))
    (logits, regressions), variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.01, rtol=1e-5)
    assert not np.any(regressions)
    for name, size in (("fpn/P5_2", 3), ("fpn/P3_1", 1), ("regression/conv1", 3), ("classification/conv4", 3)):
        arrays = flatten_dict(variables["params"], sep="/")
        deviation = (2 / (size * size * 64)) ** 0.5
        assert abs(np.std(arrays[f"{name}/kernel"]) / deviation - 1) < 0.1 and not np.any(arrays[f"{name}/bias"])


@pytest.mark.parametrize(
    "height, width, pads", [(64, 96, "nominal"), (100, 75, "same"), (152, 91, "detector"), (100, 75, "detector")]
)
def test_any_size_gives_an_output_for_every_anchor(height, width, pads):
    model = small(image=ENCODER | {"pads": pads})
    (logits, regressions), _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    )
    count = len(anchors(height, width))
    assert logits.shape == (1, count, CLASSES) and regressions.shape == (1, count, 4)


def test_a_tower_of_the_usual_strides():
    """ResNet has C3, C4, C5 of strides 8, 16 and 32: nothing but P5 and P4 is repeated."""
    options = {"image": LITTLE, "stages": LITTLE_STAGES, "labels": ["mass"], "dtype": "bfloat16"}
    model = models.detector(options)
    (logits, regressions), _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, 96, 64, 3), jnp.float32)
    )
    assert logits.shape == (1, len(anchors(96, 64)), 1) and logits.dtype == regressions.dtype == jnp.float32


def test_an_output_moves_with_its_object():
    """What is 128 pixels further right gives the same outputs 128 / 8 cells further right, far from the rim."""
    model = small()
    variables = random_variables(model)
    x = np.zeros((2, 32, 1024, 3), np.float32)
    x[0, :, 400:432] = x[1, :, 528:560] = image((32, 32, 3))
    logits, _ = jax.jit(model.apply)(variables, x)
    rows, columns = grid_sizes(32, 1024)[0]
    p3 = np.asarray(logits)[:, : rows * columns * 9].reshape(2, rows, columns, -1)
    assert np.ptp(p3[0]) > 0.1
    close(p3[1, :, 40 + 16 : 88 + 16], p3[0, :, 40:88], 0.02)


@pytest.mark.parametrize(
    "stages, message",
    [
        (("stage5", "block7", "head"), "'block7'.*Did you mean 'block07'"),
        (("stage2", "block07", "head"), "stride of 4"),
    ],
)
def test_stages_that_do_not_fit_are_named(stages, message):
    with pytest.raises(UserError, match=message):
        shapes(small(stages=stages))


@pytest.mark.parametrize(
    "change, message", [({"stages": ["stage5", "head"]}, "three stages"), ({"labels": []}, "label")]
)
def test_wrong_options_say_what_is_right(change, message):
    with pytest.raises(UserError, match=message):
        models.detector({"image": ENCODER, "stages": STAGES, "labels": ["mass"], "dtype": "float32"} | change)


# --- taps of EfficientNet ---------------------------------------------------------------------------------------------


def test_a_tap_is_a_stage_like_the_others():
    model = EfficientNet(width=0.25, depth=0.5, taps=(6, 7))
    assert model.stage_names == (
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "block06",
        "stage5",
        "block07",
        "stage6",
        "stage7",
        "head",
    )
    assert tuple(model.stage_grids(64, 64)) == model.stage_names
    assert model.stage_grids(64, 64)["block06"] == model.stage_grids(64, 64)["stage5"]
    assert model.stage_grids(64, 64)["block07"][0] == 32
    _, stages = jax.jit(model.apply)(random_variables(model), image((1, 64, 64, 3)))
    np.testing.assert_array_equal(stages["block06"], stages["stage5"])
    assert np.abs(stages["block07"] - stages["stage6"]).max() > 0 and stages["block07"].shape == stages["stage6"].shape
    with pytest.raises(UserError, match="no block 10 .* 10 blocks"):
        EfficientNet(width=0.25, depth=0.5, taps=(10,))


if __name__ == "__main__":
    write_golden()


# --- classes by text --------------------------------------------------------------------------------------------------


def test_classes_by_text_are_the_cosines_of_what_a_plain_head_gives():
    """A plain head with as many classes as the vectors have numbers, of the same weights, gives the anchors' features."""
    dim, x = 3, image((1, 32, 64, 3))
    model = small(jnp.float32, LITTLE, LITTLE_STAGES, text_dim=dim, temperature=0.1)
    variables = random_variables(model)
    variables["params"]["texts"]["bias"] = np.float32(-2.0)
    drawn = variables["batch_stats"]["texts"]["prompts"]["vectors"]
    logits, boxes = jax.jit(model.apply)(variables, x)
    plain = {kind: {name: v for name, v in tree.items() if name != "texts"} for kind, tree in variables.items()}
    features, plain_boxes = jax.jit(small(jnp.float32, LITTLE, LITTLE_STAGES, classes=dim).apply)(plain, x)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    np.testing.assert_allclose(logits, unit @ drawn.T / 0.1 - 2, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(boxes, plain_boxes, rtol=1e-3, atol=1e-4)


def test_text_vectors_are_not_learnt_and_a_class_more_leaves_the_others_alone():
    x = np.random.default_rng(1).normal(size=(1, 2, 2, 9 * 3)).astype(np.float32)
    variables = Texts(2, 3, 0.07).init(jax.random.key(0), x)
    assert set(variables["params"]) == {"bias"} and set(variables["batch_stats"]) == {"prompts"}

    def logits_of(vectors, x, bias=0.0):
        values = {"params": {"bias": bias}, "batch_stats": {"prompts": {"vectors": np.asarray(vectors, np.float32)}}}
        return Texts(len(vectors), 3, 0.07).apply(values, x).reshape(1, 2, 2, 9, -1)

    hot = np.eye(3)[[2, 0]]
    wide = x.reshape(1, 2, 2, 9, 3)
    unit = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    np.testing.assert_allclose(logits_of(hot, x, 1.5), unit[..., [2, 0]] / 0.07 + 1.5, rtol=1e-4)
    np.testing.assert_allclose(logits_of([*hot, [1, 1, 0]], x)[..., :2], logits_of(hot, x), rtol=1e-6)
    np.testing.assert_allclose(logits_of(hot, 7 * x), logits_of(hot, x), rtol=1e-4)  # its length says nothing
    gradient = jax.grad(lambda x: logits_of(hot, x).sum())(np.zeros_like(x))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(variables["params"]["bias"], -np.log(99), rtol=1e-6)
