"""Features of the image encoder alone, from each kind of model; encoders without a model around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.inference.heads import Classifier, ImageEncoder
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import init_variables
from mammoclip_jax.weights import folder

HEIGHT, WIDTH = 64, 48
ENCODER = dict(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))


def base_config():
    config = defaults()
    config.image.channels = 1
    config.model.image.update(**ENCODER)
    config.compilation_cache = ""
    return config


def meta_of(config, **more):
    return {
        "config": config.to_dict(),
        "tokenizer": None,
        "provenance": {},
        "step": 0,
        "preprocessing": {"height": HEIGHT, "width": WIDTH},
    } | more


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (5, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture(scope="module")
def alone():
    """An image encoder alone; its variables are those of all models here."""
    config = base_config()
    module = models.bare_image_encoder(config.model)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, HEIGHT, WIDTH, 1)))
    return ImageEncoder(variables, meta_of(config, kind="image_encoder"), 0, batch_size=8)


@pytest.fixture(scope="module")
def dual_encoder(alone):
    config = base_config()
    config.data.text_length = 8
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.model.dim = 8
    words = tokenizer.Tokenize(tokenizer.train_wordpiece(["a mass", "no mass"], 200))
    meta = meta_of(config, tokenizer=words.to_json())
    module = models.build(config.model, words.vocab_size)
    variables = jax.jit(lambda key: init_variables(module, key, (HEIGHT, WIDTH, 1), 8))(jax.random.key(1))
    return DualEncoder(with_encoder(variables, alone), meta, 0, batch_size=8)


def with_encoder(variables, alone):
    return {
        kind: dict(tree) | {"image_encoder": alone._variables[kind]["image_encoder"]}
        if "image_encoder" in tree
        else tree
        for kind, tree in variables.items()
    }


def test_features_are_the_encoders_before_projection_and_head(alone, dual_encoder, images):
    pixels = augment.eval_images(images, augment.preprocess_options(alone.config))
    encoder = models.image_encoder(ENCODER)
    variables = {kind: tree["image_encoder"] for kind, tree in alone._variables.items()}
    pooled, stages = jax.jit(lambda x: encoder.apply(variables, x, train=False))(pixels)
    expected = np.concatenate([stages[name].mean((1, 2)) for name in alone.stages], axis=1)
    config = base_config()
    config.model.labels = ("mass",)
    head = models.classifier(config.model)
    classifier = Classifier(
        with_encoder(jax.jit(head.init)(jax.random.key(2), pixels), alone), meta_of(config), 0, batch_size=8
    )
    for model in (alone, dual_encoder, classifier):
        found = model.image_features(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, pooled, atol=1e-5)
        np.testing.assert_allclose(model.image_features(images, of="stages"), expected, atol=1e-5)
    vectors = dual_encoder.embed_image(images)
    kernel, bias = (
        np.asarray(dual_encoder._variables["params"]["image_projection"]["dense"][part]) for part in ("kernel", "bias")
    )
    projected = dual_encoder.image_features(images) @ kernel + bias
    np.testing.assert_allclose(projected / np.linalg.norm(projected, axis=1, keepdims=True), vectors, atol=1e-5)


def test_any_batch_size_gives_the_same(alone, images):
    expected = alone.image_features(images)
    for size in (1, 3, 5):
        parts = [alone.image_features(images[start : start + size]) for start in range(0, 5, size)]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)  # sums in another order
    other = ImageEncoder(alone._variables, meta_of(alone.config), 0, batch_size=16)
    np.testing.assert_allclose(other.image_features(images), expected, atol=1e-5)


def test_an_encoder_alone_takes_images_of_any_size_and_scores_nothing(alone):
    assert (
        alone.image_features(np.zeros((2, 96, 80), np.uint16)).shape
        == alone.image_features(np.zeros((2, HEIGHT, WIDTH), np.uint8)).shape
    )
    with pytest.raises(UserError, match="scores nothing.*linear_probe"):
        alone.predict("exam")
    with pytest.raises(UserError, match="kind of image features 'stage'. Did you mean 'stages'"):
        alone.image_features(np.zeros((2, HEIGHT, WIDTH), np.uint8), of="stage")


def test_a_folder_of_an_encoder_is_loaded(alone, images, tmp_path):
    folder.write(
        tmp_path / "m", jax.device_get(alone._variables), meta_of(alone.config, kind="image_encoder"), card="# A card"
    )
    again = loading.load(tmp_path / "m", batch_size=8)
    assert again.kind == "image_encoder" and again.fingerprint() == alone.fingerprint()
    np.testing.assert_array_equal(again.image_features(images), alone.image_features(images))


def test_maps_of_a_direction_among_features(alone, images):
    directions = np.random.default_rng(1).normal(size=(5, alone.image_features(images).shape[1]))
    maps = alone.saliency(images, directions, method="grad_cam", stage="stage4")
    assert maps.shape == images.shape and maps.max() == 1


def test_the_fingerprint_follows_weights_and_normalisation(alone):
    before = alone.fingerprint()
    changed = jax.tree.map(lambda x: x, alone._variables)
    changed["params"]["image_encoder"] = jax.tree.map(lambda x: x + 1e-6, changed["params"]["image_encoder"])
    assert ImageEncoder(changed, meta_of(alone.config), 9).fingerprint() != before
    assert ImageEncoder(alone._variables, meta_of(alone.config), 9).fingerprint() == before
    other = base_config()
    other.image.mean = 0.5
    assert ImageEncoder(alone._variables, meta_of(other), 0).fingerprint() != before
