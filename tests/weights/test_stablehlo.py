"""The exported image tower is the module, for any batch size, and in the form that each platform runs well."""

import json

import jax
import numpy as np
import pytest
from jax import export

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import augment
from mammoclip_jax.weights import stablehlo

HEIGHT, WIDTH = 56, 42
ENCODERS = {
    "efficientnet": {"variant": "b0", "width": 0.25, "depth": 0.3},
    "dinov2": {"width": 16, "depth": 1, "heads": 2, "patch": 14, "size": 28},
}


def make(name, bits=8):
    """(variables, meta) of a tiny dual encoder with random weights, the batch statistics too."""
    config = defaults()
    config.name = "tiny"
    config.image.channels = 1
    config.model.image.update(name=name, **ENCODERS[name])
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20
    )
    config.model.dim = 8
    module = models.build(config.model, 0)
    image = np.zeros((1, 1, HEIGHT, WIDTH, 1), np.float32)
    ids = np.zeros((1, 1, 4), np.int32)
    variables = jax.jit(lambda *x: module.init(*x, train=False))(jax.random.key(0), image, ids, ids == 0)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.float32(x) + random.uniform(0, 0.1, x.shape).astype(np.float32), variables)
    meta = {
        "kind": "dual_encoder",
        "step": 5,
        "config": config.to_dict(),
        "tokenizer": None,
        "preprocessing": {"height": HEIGHT, "width": WIDTH, "bits": bits},
        "provenance": {"licences": [], "notes": ["read from /home/somebody/weights.tar"]},
    }
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, meta


def expected(variables, meta, images):
    module = models.build(meta["config"]["model"], 0)
    pixels = augment.eval_images(images, augment.Preprocess(**meta["config"]["image"]))
    return jax.jit(lambda *x: module.apply(*x, train=False, method="encode_image")[0])(variables, pixels)


def pictures(count, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (count, HEIGHT, WIDTH), dtype=dtype)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    variables, meta = make("efficientnet")
    return variables, meta, stablehlo.export_image(tmp_path_factory.mktemp("hlo") / "tower", variables, meta)


@pytest.mark.parametrize("count", [1, 3])
def test_the_program_is_the_module(exported, count):
    variables, meta, out = exported
    images = pictures(count)
    vectors = stablehlo.load_image(out)(images)
    assert vectors.dtype == np.float32 and vectors.shape == (count, 8)
    np.testing.assert_allclose(vectors, expected(variables, meta, images), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_transformers_and_16_bit_images(tmp_path):
    variables, meta = make("dinov2", bits=16)
    out = stablehlo.export_image(tmp_path / "tower", variables, meta, platforms=["cpu"])
    embed = stablehlo.load_image(out)
    for count in (1, 3):
        images = pictures(count, np.uint16)
        # 1e-5: the norms of vectors of 16 random numbers magnify the rounding of another order of sums.
        np.testing.assert_allclose(embed(images), expected(variables, meta, images), atol=1e-5)
    with pytest.raises(UserError, match="uint8.*takes uint16"):
        embed(pictures(1))


def test_each_platform_has_its_own_depthwise_convolution(exported):
    *_, out = exported
    for platform in stablehlo.PLATFORMS:
        program = export.deserialize(bytearray((out / f"image_tower.{platform}.stablehlo").read_bytes()))
        assert program.platforms == (platform,)
        assert str(program.in_avals[0].shape) == f"(b, {HEIGHT}, {WIDTH})"
        text = program.mlir_module()
        grouped = [
            line
            for line in text.splitlines()
            if "stablehlo.convolution" in line and "feature_group_count = 1 " not in line
        ]
        assert bool(grouped) == (platform != "cpu"), platform
        assert len(program.in_avals) == 1  # the weights are inside


def test_the_description_says_what_it_is_and_where_from(exported):
    *_, out = exported
    text = (out / "image_tower.json").read_text()
    assert "somebody" not in text and "weights.tar" in text
    description = json.loads(text)
    assert description["input"] == {"dtype": "uint8", "shape": ["b", HEIGHT, WIDTH]}
    assert description["output"] == {"dtype": "float32", "shape": ["b", 8], "norm": 1}
    assert (description["jax"], description["step"], description["name"]) == (jax.__version__, 5, "tiny")
    assert sorted(description["programs"]) == sorted(stablehlo.PLATFORMS)


def test_what_does_not_fit_is_said(exported, tmp_path):
    variables, meta, out = exported
    embed = stablehlo.load_image(out)
    for wrong in (pictures(1)[:, :-1], pictures(1)[0], pictures(1).astype(np.float32), pictures(0)):
        with pytest.raises(UserError, match="takes uint8"):
            embed(wrong)
    with pytest.raises(UserError, match="Did you mean 'cuda'"):
        stablehlo.export_image(tmp_path / "x", variables, meta, platforms=["cudda"])
    with pytest.raises(UserError, match="--platforms is empty"):
        stablehlo.export_image(tmp_path / "x", variables, meta, platforms=[])
    with pytest.raises(UserError, match="image_tower.json cannot be read"):
        stablehlo.load_image(tmp_path)
    assert not (tmp_path / "x").exists()


def test_damage_and_missing_programs_are_found(tmp_path):
    variables, meta = make("dinov2")
    out = stablehlo.export_image(tmp_path / "tower", variables, meta, platforms=["cpu"])
    with pytest.raises(UserError, match="tpu"):
        stablehlo.load_image(out, platform="tpu")
    stablehlo.export_image(out, variables, meta, platforms=["cpu", "tpu"])  # an earlier export makes way
    (out / "image_tower.tpu.stablehlo").unlink()
    with pytest.raises(UserError, match="missing"):
        stablehlo.load_image(out, platform="tpu")
    file = out / "image_tower.cpu.stablehlo"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        stablehlo.load_image(out)
    (out / "mine.txt").write_text("")
    with pytest.raises(UserError, match="mine.txt"):
        stablehlo.export_image(out, variables, meta, platforms=["cpu"])
