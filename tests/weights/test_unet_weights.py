"""A plain U-Net of PyTorch comes in by its names and goes out again, bit for bit, as a file and as a model folder."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_actions import command  # noqa: F401

from mammoclip_jax import inference, models
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.loading import load
from mammoclip_jax.weights import layouts, torch_writer
from mammoclip_jax.weights.names import unet
from mammoclip_jax.weights.names.unet import _shapes


def state_of(upsampling="transposed", channels=1, classes=2):
    image = {"name": "unet", "width": 4, "depth": 2, "upsampling": upsampling}
    rng = np.random.default_rng(0)
    variables = unflatten_dict(
        {
            path: np.abs(rng.normal(size=shape)).astype(np.float32)
            for path, shape in _shapes(image, channels, classes).items()
        },
        sep="/",
    )
    return image, variables, unet.write(variables)


@pytest.mark.parametrize("upsampling, tensors", [("transposed", 66), ("bilinear", 62)])
def test_what_is_written_is_read_again_bit_for_bit(upsampling, tensors):
    image, variables, state = state_of(upsampling, channels=3)
    assert len(state) == tensors and layouts.detect(state) == "unet"
    assert state["up1.up.weight"].shape == (16, 8, 2, 2) if upsampling == "transposed" else "up1.up.weight" not in state
    assert state["outc.conv.weight"].shape == (2, 4, 1, 1)
    found, channels, classes, again, unused = unet.read(state)
    assert (found, channels, classes) == (image, 3, 2)
    assert all(name.endswith("num_batches_tracked") for name in unused)
    ours, theirs = (flatten_dict(tree, sep="/") for tree in (variables, again))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("up2.conv.double_conv.3.weight"), "missing up2.conv.double_conv.3.weight"),
        (lambda state: state.update({"inc.double_conv.0.bias": np.zeros(4)}), "unused inc.double_conv.0.bias"),
        (
            lambda state: state.update({"outc.conv.bias": np.zeros(3, np.float32)}),
            r"outc.conv.bias has the shape \(3,\)",
        ),
    ],
)
def test_another_file_is_refused_by_name(change, message):
    _, _, state = state_of()
    change(state)
    with pytest.raises(UserError, match=message):
        unet.read(state)


def test_imported_exported_and_imported_again(command, tmp_path):  # noqa: F811
    _, variables, state = state_of()
    file, folder, again = tmp_path / "net.pth", tmp_path / "net", tmp_path / "again.pth"
    torch_writer.write(file, {"state_dict": state})
    assert command("import", file, f"--out={folder}", "--labels=breast,mass") == 0
    model = load(folder)
    assert model.kind == "segmenter" and model.labels == ("breast", "mass") and model.stages[0] == "level0"
    images = np.random.default_rng(0).integers(0, 256, (3, 512, 320), dtype=np.uint8)[:, :64, :40]
    with pytest.raises(UserError, match="512 x 320 pixels"):
        model.segment(images)
    model.preprocessing = model.preprocessing | {"height": 64, "width": 40}  # a smaller canvas, for the test's sake
    masks, probabilities = model.segment(images, 0.6), model.probabilities(images)
    assert masks.shape == (3, 64, 40, 2) and np.array_equal(masks, probabilities > 0.6)
    module = models.segmenter(model.config.model)
    logits = module.apply(variables, (images / np.float32(255))[..., None])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-4)
    with pytest.raises(UserError, match="scores no exams"):
        model.predict(tmp_path)
    assert "image-segmentation" in (folder / "README.md").read_text()
    assert command("export", f"--workdir={folder}", f"--out={again}", "--format=torch") == 0
    there = load(again)
    for name, value in flatten_dict(dict(there._variables), sep="/").items():
        np.testing.assert_array_equal(value, flatten_dict(variables, sep="/")[name])
    assert inference.loading.KINDS["segmenter"] is type(there)
