"""Gradient caching: micro-batches of a tower give the gradient of one pass over the same micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mammoclip_jax import losses
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import efficientnet
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import augment, gradient_caching
from mammoclip_jax.training import mesh as meshes

BREASTS = 32  # of two images and two texts: 64 each
PREPROCESSING = {"height": 32, "width": 32, "bits": 8}


@pytest.fixture(autouse=True)
def two_stages(monkeypatch):
    """EfficientNet with two of its seven stages: they have all the kinds of blocks."""
    monkeypatch.setattr(efficientnet, "STAGES", tiny.STAGES)


def config_of(image="efficientnet", parts=(1, 1), dropout=0.1):
    config = defaults()
    if image == "efficientnet":
        config.model.image.update(name="efficientnet", variant="b0", width=0.24, drop_connect_rate=0.2)
    else:
        config.model.image.update(name="vit", variant="tiny", width=16, depth=2, heads=2)
    config.model.text.update(
        name="bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config.model.dim = 8
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0, contrast=0.1)
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=1, batch_size=BREASTS)
    config.train.micro_batches.update(image=parts[0], text=parts[1])
    config.data.text_length = 8
    return config


def gradients(config, mesh):
    """(loss, batch statistics, gradients)."""
    trainer = make_trainer(config, tiny.VOCABULARY, PREPROCESSING, mesh)
    run = jax.jit(trainer.gradient)
    batch = meshes.put_batch(tiny.batch(BREASTS, flips=True), mesh)
    loss, _, stats, gradient = jax.device_get(run(state_of(trainer, config), batch))
    return loss, stats, gradient


def state_of(trainer, config):
    """The first state, its parameters and statistics in the config's type of computation."""
    state = trainer.init()
    params, stats = jax.tree.map(lambda x: x.astype(config.model.dtype), (state.params, state.batch_stats))
    return state._replace(params=params, batch_stats=stats)


def assert_close(one, other, tolerance):
    """By the norm of the difference: single arrays whose gradient is zero but for rounding agree in nothing."""
    difference, size = (
        np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(np.subtract, one, other), other)
    )
    assert difference < tolerance * size, difference / size


def one_pass(config):
    """Loss and gradients of the same micro-batches, with the same dropout, through a plain scan: all of it is kept."""
    trainer = make_trainer(config, tiny.VOCABULARY, PREPROCESSING, meshes.make_mesh({}, jax.devices()[:1]))
    state, batch = state_of(trainer, config), tiny.batch(BREASTS, flips=True)
    preprocess = augment.Preprocess(config.image.mean, config.image.std, 1, "minmax", **config.augment)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    draws = augment.draw(batch, augment_key, preprocess)
    keys = dict(zip(("image", "text"), jax.random.split(dropout_key)))
    terms = losses.build(config.losses)

    @jax.jit
    def run(state, batch, draws):
        def loss_fn(params):
            stats, vectors = state.batch_stats, {}
            flat = {name: x.reshape(2 * BREASTS, *x.shape[2:]) for name, x in batch.items() if x.ndim > 1}
            inputs = {"image": (flat["image"], draws), "text": (flat["token_ids"], flat["token_mask"])}
            for tower, parts in config.train.micro_batches.items():

                def encode(stats, part, tower=tower):
                    data, other, key = part
                    arguments = (augment.train_images(data, other, preprocess),) if tower == "image" else (data, other)
                    (found, _), updated = trainer.model.apply(
                        {"params": params, "batch_stats": stats},
                        *arguments,
                        train=True,
                        rngs={"dropout": key},
                        mutable=["batch_stats"],
                        method=f"encode_{tower}",
                    )
                    return updated.get("batch_stats", stats), found

                rows = jax.tree.map(
                    lambda x, parts=parts: jnp.stack([x[i::parts] for i in range(parts)]), inputs[tower]
                )
                each = jax.random.split(keys[tower], parts) if parts > 1 else keys[tower][None]
                stats, found = jax.lax.scan(encode, stats, (*rows, each))
                vectors[tower] = jnp.moveaxis(found, 0, 1).reshape(BREASTS, 2, -1)
            embeddings = gradient_caching.Embeddings(**vectors, logit_scale=jnp.exp(params["logit_scale"]))
            term = terms[0].function
            return term(embeddings, batch, trainer.mesh)[0], stats

        (loss, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return loss, stats, gradient

    return jax.device_get(run(state, batch, draws))


@pytest.mark.slow
def test_64_images_in_micro_batches_of_8_give_the_gradient_of_one_pass():
    """With batch normalisation, drop-connect and dropout; running statistics advance once.

    In float64, since float32 alone moves this network's gradient by 1.6e-5.
    """
    config = config_of(parts=(8, 8))
    config.model.dtype = "float64"
    with jax.enable_x64(True):
        loss, stats, gradient = gradients(config, meshes.make_mesh({}, jax.devices()[:1]))
        loss1, stats1, gradient1 = one_pass(config)
    np.testing.assert_allclose(loss, loss1, rtol=1e-6)
    assert_close(gradient, gradient1, 1e-6)
    assert_close(stats, stats1, 1e-9)


@pytest.mark.slow
def test_without_batch_statistics_and_dropout_the_whole_batch_gives_the_same():
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    loss, _, gradient = gradients(config_of("vit", (8, 4), dropout=0.0), mesh)
    loss1, _, gradient1 = gradients(config_of("vit", dropout=0.0), mesh)
    np.testing.assert_allclose(loss, loss1, rtol=1e-6)
    assert_close(gradient, gradient1, 1e-5)


def test_each_part_draws_for_itself_and_hands_its_statistics_on():
    class Model:
        """Vectors that are the row's number and a draw of the dropout; the statistic counts the passes."""

        def apply(self, variables, rows, *others, train, rngs, mutable, method):
            vectors = jnp.stack([rows.reshape(len(rows), -1)[:, 0], jax.random.uniform(rngs["dropout"], len(rows))], 1)
            details = {"map": 2 * rows, "large": rows} if method == "image_outputs" else 3 * rows
            return (vectors, details), {"batch_stats": {"passes": variables["batch_stats"]["passes"] + 1}}

    rows = jnp.arange(2.0 * BREASTS).reshape(BREASTS, 2, 1)
    batch = {"image": rows, "token_ids": rows, "token_mask": rows > 0}

    def embed(*needs):
        return gradient_caching.embed(
            Model(),
            {"params": {"logit_scale": jnp.zeros(())}, "batch_stats": {"passes": jnp.zeros(())}},
            batch,
            lambda image, drawn: image,
            rows.reshape(-1),
            jax.random.key(0),
            {"image": 4, "text": 8},
            needs,
        )

    found, stats = embed("image/map", "text/states")
    for vectors in (found.image, found.text):
        np.testing.assert_array_equal(vectors[..., 0], rows[..., 0])
        assert len(np.unique(vectors[..., 1])) == 2 * BREASTS
    assert stats["passes"] == 4 + 8
    # What terms need besides goes the same way; the rest is not kept.
    assert set(found.named) == {"image/map", "text/states"}
    np.testing.assert_array_equal(found.named["image/map"], 2 * rows)
    np.testing.assert_array_equal(found.named["text/states"], 3 * rows)
    with pytest.raises(UserError, match="output of the image tower that a loss needs 'image/mop'.*image/map"):
        embed("image/mop")


@pytest.mark.slow
def test_parts_stay_spread_over_eight_devices():
    config = config_of(parts=(4, 2))
    loss, stats, gradient = gradients(config, meshes.make_mesh({}, jax.devices()[:1]))
    loss8, stats8, gradient8 = gradients(config, meshes.make_mesh({"data": 4, "fsdp": 2}))
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    assert_close(gradient8, gradient, 1e-3)
    assert_close(stats8, stats, 1e-4)


@pytest.mark.slow
def test_a_batch_of_64_in_parts_takes_the_memory_of_one_of_8():
    """The program's temporary memory, as the compiler plans it."""

    def temporaries(breasts, parts):
        config = config_of("vit", (parts, parts))
        config.train.batch_size = breasts
        mesh = meshes.make_mesh({}, jax.devices()[:1])
        trainer = make_trainer(config, tiny.VOCABULARY, {"height": 128, "width": 96, "bits": 8}, mesh)
        compiled = jax.jit(trainer.gradient).lower(trainer.state, trainer.batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(32, 8) < 1.3 * temporaries(4, 1)
