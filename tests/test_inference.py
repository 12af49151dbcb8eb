"""A model in use: batches and padding change nothing, and the maps are what their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import inference, models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import init_variables

HEIGHT, WIDTH = 96, 64


@pytest.fixture(scope="module")
def meta():
    config = defaults()
    config.image.channels = 1
    config.data.text_length = 16
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.text.update(name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=32)
    config.model.dim = 8
    words = tokenizer.Tokenize(tokenizer.train_wordpiece(["a mass in the left breast", "no mass"], 200))
    return {"config": config.to_dict(), "tokenizer": words.to_json(), "provenance": {},
            "preprocessing": {"height": HEIGHT, "width": WIDTH}}


@pytest.fixture(scope="module")
def variables(meta):
    vocabulary = tokenizer.Tokenize.from_json(meta["tokenizer"]).vocab_size
    return init_variables(models.build(meta["config"]["model"], vocabulary), jax.random.key(0), (HEIGHT, WIDTH, 1), 16)


@pytest.fixture(scope="module")
def model(meta, variables):
    return inference.Model(variables, meta, 7, batch_size=8)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (11, HEIGHT, WIDTH), dtype=np.uint8)


def test_batch_size_and_padding_change_nothing(model, meta, variables, images):
    vectors = model.embed_image(images)
    assert vectors.shape == (11, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    # 1e-5: other shapes of the same products add up in another order.
    other = inference.Model(variables, meta, 7, batch_size=16)
    np.testing.assert_allclose(other.embed_image(images), vectors, atol=1e-5)
    np.testing.assert_allclose(model.embed_image(images[3:4]), vectors[3:4], atol=1e-5)


def test_similarity_is_the_cosine(model, images):
    texts = model.embed_text(["a mass", "no mass in the left breast"])
    vectors = model.embed_image(images)
    np.testing.assert_allclose(model.similarity(vectors, texts)[4, 1], float(vectors[4] @ texts[1]), rtol=1e-5)


def test_new_variables_are_used(model, variables, images):
    before = model.embed_image(images[:2])
    model.set_variables(jax.tree.map(lambda x: x * 1.1, variables), 8)
    assert model.step == 8 and np.abs(model.embed_image(images[:2]) - before).max() > 1e-4
    model.set_variables(variables, 7)
    np.testing.assert_array_equal(model.embed_image(images[:2]), before)


@pytest.mark.parametrize("method", inference.CAM_METHODS)
def test_map_equals_its_formula_with_finite_differences(model, meta, variables, images, method):
    """The gradient by the stage map, cell by cell in float64, then the formula; before resampling to the image."""
    stage = "stage7"
    towards = np.asarray(model.embed_text(["a mass"])[0], np.float64)
    with jax.enable_x64(True):
        module = models.build(meta["config"]["model"] | {"dtype": "float64"},
                              tokenizer.Tokenize.from_json(meta["tokenizer"]).vocab_size)
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        pixels = np.asarray(augment.eval_images(images[:1], inference.preprocess_options(model.config)), np.float64)

        @jax.jit
        def score(offset):
            vectors, stages = module.apply(wide, pixels, train=False, offsets={stage: offset}, method="encode_image")
            return vectors[0] @ towards, stages[stage]

        features = np.asarray(score(jnp.zeros((), jnp.float64))[1])[0]
        gradient = np.zeros_like(features)
        for position in np.ndindex(features.shape):
            step = np.zeros((1, *features.shape))
            step[(0, *position)] = 1e-4
            gradient[position] = (score(step)[0] - score(-step)[0]) / 2e-4
    weights = gradient.mean((0, 1), keepdims=True) if method == "grad_cam" else gradient
    expected = np.maximum((weights * features).sum(-1), 0)
    stride, centre = models.build(meta["config"]["model"], 50).image_encoder.stage_grids(HEIGHT, WIDTH)[stage]
    assert stride == 32 and features.shape[:2] == (3, 2)
    found = model.grad_cam(images[:1], ["a mass"], stage=stage, method=method)[0]
    # The value of a cell stands at its centre, which lies between pixels: the mean of the four around it.
    rows, columns = (np.array([int(stride * i + c) for i in range(n)]) for n, c in zip((3, 2), centre))
    inside = [(i, j) for i in range(3) for j in range(2) if rows[i] < HEIGHT - 1 and columns[j] < WIDTH - 1]
    at = np.array([found[rows[i] - 1:rows[i] + 1, columns[j] - 1:columns[j] + 1].mean() for i, j in inside])
    cells = np.array([expected[i, j] for i, j in inside])
    assert cells.max() > 0
    np.testing.assert_allclose(at / at.max(), cells / cells.max(), atol=0.05)


def test_wrong_names_are_explained(model, images):
    with pytest.raises(UserError, match="no stage 'stage77'. Did you mean 'stage7'"):
        model.grad_cam(images, ["a mass"] * 11, stage="stage77")
    with pytest.raises(UserError, match="no method 'gradcam'"):
        model.grad_cam(images, ["a mass"] * 11, stage="head", method="gradcam")
    with pytest.raises(UserError, match="is empty"):
        model.embed_text([])


def test_stages_are_in_order(model):
    assert model.stages[0] == "stem" and model.stages[-1] == "head"
    assert model.stages[1:-1] == tuple(f"stage{i}" for i in range(1, 8))
