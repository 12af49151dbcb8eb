"""LoRA inside the trainer: what moves, where it starts, what comes out, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import HEIGHT, LENGTH, VOCABULARY, WIDTH, build
from tiny import batch as tiny_batch

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import lora
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import init_variables


def tiny_config(**options):
    config = defaults()
    config.model.image.update(name="vit", variant="tiny", width=16, depth=1, heads=2, size=32)
    config.model.text.update(name="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=16)
    config.model.dim = 8
    config.model.lora.update(pattern="text_encoder/.*/c_attn/kernel", rank=4, **options)
    config.image.channels = 1
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=1, lr=1e-2, weight_decay=0.1, ema_decay=0.5)
    return config


@pytest.fixture(scope="module")
def trained():
    """(config, model, state before, state after three steps)."""
    config, mesh = tiny_config(), meshes.make_mesh({}, jax.devices()[:1])
    model, before, step, _ = build(config, mesh)
    step, batch, state = jax.jit(step), meshes.put_batch(tiny_batch(), mesh), before
    for _ in range(3):
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"])
    return config, model, jax.device_get(before._replace(key=None)), jax.device_get(state._replace(key=None))


def encode(model, variables):
    batch = tiny_batch()
    image = (batch["image"][..., None] / 255).astype(np.float32)
    run = jax.jit(lambda v: model.apply(v, image, batch["token_ids"], batch["token_mask"], train=False)[:2])
    return jax.device_get(run(variables))


@pytest.mark.parametrize("part", ["params", "ema"])
def test_training_moves_adapters_projections_and_the_other_tower_alone(trained, part):
    _, _, before, after = trained
    one, two = (
        flatten_dict(state.params if part == "params" else state.ema["params"], sep="/") for state in (before, after)
    )
    still = {path for path in one if np.array_equal(one[path], two[path])}
    assert {path for path in one if path.startswith("text_encoder/")} == still
    moved = set(one) - still
    assert sum(path.startswith("lora/text_encoder/") for path in moved) == 4
    assert {"logit_scale", "text_projection/dense/kernel", "image_projection/dense/kernel"} <= moved


def test_no_moments_are_kept_for_the_base(trained):
    """The optimiser's memory is that of what is trained."""
    _, _, _, after = trained
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)]
    assert any("'lora'" in path for path in paths)
    assert not [path for path in paths if "['text_encoder']" in path and "'lora'" not in path]


def test_it_starts_as_the_model_without_adapters(trained):
    config, model, before, _ = trained
    plain = tiny_config()
    plain.model.lora = {}
    base = models.build(plain.model, VOCABULARY)
    key = jax.random.split(jax.random.key(config.seed))[0]
    fresh = jax.jit(lambda key: init_variables(base, key, (HEIGHT, WIDTH, 1), LENGTH))(key)
    without = {name: tree for name, tree in before.params.items() if name != "lora"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), dict(fresh["params"]), without)
    adapted = encode(model, {"params": before.params, "batch_stats": before.batch_stats})
    expected = encode(base, {"params": without, "batch_stats": before.batch_stats})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), adapted, expected)


def test_merged_is_a_plain_model_with_the_same_embeddings(trained):
    config, model, _, after = trained
    variables = {"params": after.params, "batch_stats": after.batch_stats}
    plain, plain_config = lora.merged(variables, config.model.to_dict())
    assert "lora" not in plain["params"] and plain_config["lora"] == {}
    assert lora.merged(plain, plain_config)[0].keys() == plain.keys()
    ours = encode(model, variables)
    theirs = encode(models.build(plain_config, VOCABULARY), plain)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    untouched = encode(
        models.build(plain_config, VOCABULARY),
        {
            "params": {name: tree for name, tree in after.params.items() if name != "lora"},
            "batch_stats": after.batch_stats,
        },
    )
    assert np.abs(untouched[1] - theirs[1]).max() > 1e-4  # else nothing was merged
    with pytest.raises(UserError, match="the weights hold no adapters"):
        lora.merged(plain, config.model.to_dict())


@pytest.mark.slow
def test_dropout_in_training_is_that_of_the_adapters(trained):
    """At the start lora_b is zero: dropout on the adapters shows in the gradient of lora_b, and nowhere else."""
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    results = {}
    for rate in (0.0, 0.5):
        config = tiny_config(dropout=rate)
        config.model.text.update(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        _, state, _, gradient_fn = build(config, mesh)
        batch = meshes.put_batch(tiny_batch(), mesh)
        loss, _, _, gradients = jax.jit(gradient_fn)(state, batch)
        results[rate] = float(loss), flatten_dict(jax.device_get(gradients), sep="/")
    (loss, plain), (dropped_loss, dropped) = results[0.0], results[0.5]
    np.testing.assert_allclose(loss, dropped_loss, rtol=1e-5)
    for path, gradient in plain.items():
        scale = np.abs(gradient).max()
        differs = np.abs(gradient - dropped[path]).max() > 1e-2 * scale
        if scale > 1e-6:
            assert differs == path.endswith("lora_b"), path
        if path.startswith("text_encoder/"):
            assert scale == 0, path


@pytest.mark.slow
def test_gradients_are_the_same_on_eight_devices():
    results = []
    for devices, sizes in ((jax.devices()[:1], {}), (jax.devices(), {"data": 4, "fsdp": 2})):
        mesh = meshes.make_mesh(sizes, devices)
        _, state, _, gradient_fn = build(tiny_config(), mesh)
        run = jax.jit(gradient_fn)
        loss, _, _, gradients = jax.device_get(run(state, meshes.put_batch(tiny_batch(), mesh)))
        results.append((loss, flatten_dict(gradients["lora"], sep="/")))
    (loss, one), (loss8, eight) = results
    np.testing.assert_allclose(loss, loss8, rtol=1e-5)
    compared = 0
    for path, gradient in one.items():
        np.testing.assert_allclose(gradient, eight[path], rtol=1e-3, atol=1e-4 * np.abs(gradient).max())
        compared += bool(np.any(gradient))
    assert compared == 2  # lora_b of both layers; lora_a has no gradient while lora_b is zero


@pytest.mark.parametrize(
    "image, pattern",
    [
        (dict(name="efficientnet", variant="b0", width=0.25, depth=0.3), ".*/(reduce|expand)/kernel"),
        (dict(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1)), "text_encoder/.*/c_attn/kernel"),
        (dict(name="vit", variant="tiny", width=16, depth=2, heads=2), "image_encoder/.*/(query|value)/kernel"),
    ],
)
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_adapters_with_dropout_run_beside_other_image_encoders(image, pattern, parts):
    """By shapes: in the image tower, beside one that makes its modules while it runs, and inside a scan over parts."""
    config = tiny_config()
    config.model.image = image
    config.train.micro_batches.update(image=parts, text=parts)
    config.model.lora.pattern = pattern
    config.train.batch_size, config.data.text_length = 8, LENGTH
    trainer = make_trainer(
        config, VOCABULARY, {"height": HEIGHT, "width": WIDTH, "bits": 8}, meshes.make_mesh({}, jax.devices()[:1])
    )
    gradients = jax.eval_shape(trainer.gradient, trainer.state, trainer.batch)[3]
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, trainer.state.params)


def test_mistakes_are_named():
    config = tiny_config()
    config.model.frozen = ("text",)
    model = models.build(config.model, VOCABULARY)
    with pytest.raises(UserError, match="lora adapts the text tower, and config.model.frozen has 'text'"):
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (HEIGHT, WIDTH, 1), LENGTH))
    for options, message in (
        (dict(rank=2), "no pattern"),
        (dict(pattern="x", ranks=2), "no option 'ranks'"),
        (dict(pattern="x", dropout=1.0), "dropout=1.0"),
    ):
        config = tiny_config()
        config.model.lora = options
        with pytest.raises(UserError, match=message):
            models.build(config.model, VOCABULARY)


def test_mamas_count():
    """BioMedLM, 32 layers of width 2560, rank 8 on c_attn (MaMA): 2,621,440 parameters, by shapes alone."""
    config = tiny_config()
    config.model.text.update(n_embd=2560, n_layer=32, n_head=20)
    config.model.lora.rank = 8
    model = models.build(config.model, 28896)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (HEIGHT, WIDTH, 1), LENGTH))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"]["lora"])) == 2_621_440
