"""Vectors of regions: the whole image is one of them, boxes lie in the cells of each stage, and what is not there is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.dual_encoder import DualEncoder
from mammoclip_jax.models.roi_align import roi_align
from mammoclip_jax.training.step import init_variables

SIZE = (48, 32)
BOXES = np.array([[[4, 8, 20, 24], [0, 0, 32, 48]], [[10, 30, 30, 46], [2, 2, 9, 9]]], np.float32)


class Encoder(nn.Module):
    """Two stages; the cells of the first are centred as RoIAlign has them, those of the second half a cell before."""

    def stage_grids(self, height, width):
        return {"fine": (4, (2.0, 2.0)), "coarse": (8, (0.5, 0.5))}

    @nn.compact
    def __call__(self, x, *, train=False, offsets={}):
        stages, x = {}, x.astype(jnp.float32)
        for name, channels, window in (("fine", 4, 4), ("coarse", 6, 2)):
            x = stages[name] = nn.Conv(channels, (window, window), (window, window), name=name)(x)
        return x.mean((1, 2)), stages


def build(image_head="", **options):
    heads = models.heads_of({"regions": dict(stages=("fine", "coarse"), dim=8) | options})
    text = models.text_encoder(dict(name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2), 40)
    return DualEncoder(Encoder(), text, 8, heads=heads, image_head=image_head)


def fresh(model):
    return jax.jit(lambda key: init_variables(model, key, (*SIZE, 3), 8))(jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype(np.float32)


def test_a_region_that_is_all_of_the_image_is_the_image_and_boxes_are_those_of_roi_align(images):
    model = build("regions")
    variables = fresh(model)
    assert "image_projection" not in variables["params"]  # nothing is projected

    @jax.jit
    def outputs(variables):
        vectors, stages = model.apply(variables, images, method="encode_image")
        pooled = [
            roi_align(stages[name], BOXES + shift, np.ones((2, 2), bool), stride=stride).mean((2, 3))
            for name, stride, shift in (("fine", 4, 0), ("coarse", 8, 3.5))
        ]
        return vectors, model.apply(variables, "regions", images, BOXES, method="embed_regions"), pooled

    vectors, found, pooled = jax.device_get(outputs(variables))
    np.testing.assert_allclose(found[0, 1], vectors[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    out = jax.device_get(variables["params"]["heads"]["regions"]["out"])
    expected = np.concatenate(pooled, -1) @ out["kernel"] + out["bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    with pytest.raises(UserError, match="no projection of single places"):
        model.apply(variables, np.zeros((1, 6), np.float32), method="project_image")


@pytest.mark.parametrize(
    "options",
    [dict(pool="max", hidden=12), dict(pool="attention", heads=2, stages=("coarse",)), dict(levels="size", size=2)],
)
def test_what_a_head_gives_to_terms(images, options):
    model = build(**options)
    variables = fresh(model)
    there, views = np.array([[[True, False]], [[True, True]]]), np.array([[True], [False]])

    @jax.jit
    def outputs(variables):
        _, outputs = model.apply(variables, images, method="image_outputs")
        inputs = {f"image/{name}": x[:, None] for name, x in outputs.items()}
        inputs |= {"boxes": BOXES[:, None], "regions": there, "view_mask": views, "mask": np.ones(2, bool)}
        embedded = model.apply(variables, "regions", images, BOXES, method="embed_regions")
        return model.apply(variables, "regions", inputs, size=SIZE, method="apply_head"), embedded

    found, embedded = jax.device_get(outputs(variables))
    assert found["regions/vectors"].shape == (2, 1, 2, 8) and found["regions/image"].shape == (2, 1, 8)
    np.testing.assert_array_equal(found["regions/mask"], there & views[..., None])
    own = found["regions/vectors"][0, 0, 0]
    np.testing.assert_allclose(own / np.linalg.norm(own), embedded[0, 0], atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(image_head="other"), "config.model.image_head is 'other'"),
        (dict(pool="sum"), "pool of a head of kind regions"),
        (dict(levels="each"), "levels of a head of kind regions"),
        (dict(stages=("stage9",)), "stage9"),
    ],
)
def test_what_cannot_be_is_an_error(change, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda key: init_variables(build(**change), key, (*SIZE, 3), 8), jax.random.key(0))
