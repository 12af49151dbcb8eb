"""Training with heads: all terms of MaMA and GLAM, on 1 and 8 devices, in micro-batches; and heads that wait."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from mammoclip_jax import models
from mammoclip_jax.config import complete, defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import continuation
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import init_variables

PREPROCESSING = {"height": 32, "width": 32, "bits": 8}
HEADS = {
    "local": {"stage": "last", "hidden": 12, "dim": 8, "sentences": 3, "lit": 0.1},
    "simclr": {"hidden": 12, "dim": 8},
    "cross_view": {"stage": "last", "cell": (2, 2), "heads": 2},
}


def config_of(start=0, parts=1):
    """A tiny dual encoder; the terms of the heads and of the second view start at `start`."""
    config = defaults()
    config.model.image.update(name="vit", variant="tiny", width=16, depth=1, heads=2, patch=8)
    config.model.text.update(
        name="bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.model.dim, config.model.heads = 8, HEADS
    config.data.sentences, config.data.slots = 3, ("CC", "MLO")
    config.image.channels = 1
    config.losses = {
        "view_text": {},
        "partner": {"kind": "view_text", "view": 1, "start_step": start},
        **{name: {"start_step": start} for name in ("nt_xent", "local_alignment", "geometry")},
    }
    config.train.update(
        steps=20, warmup_steps=1, batch_size=16, lr=1e-2, weight_decay=0.5, ema_decay=0.7, clip_norm=1.0
    )
    config.train.micro_batches.update(image=parts, text=parts)
    config.data.text_length = tiny.LENGTH
    return config


def batch():
    """Breast 1 has one view, breast 2 a text without sentences, row 15 only fills up."""
    found = tiny.batch(16)
    sentence = np.where(found["token_mask"], np.arange(tiny.LENGTH) // 3, -1).astype(np.int32)
    sentence[2] = -1
    view_mask, mask = np.ones((16, 2), bool), np.arange(16) < 15
    view_mask[1, 1] = False
    return found | {"sentence": sentence, "view_mask": view_mask, "mask": mask}


def trainer_of(config, devices=1):
    mesh = meshes.make_mesh({"data": -1}, jax.devices()[:devices])
    return make_trainer(config, tiny.VOCABULARY, PREPROCESSING, mesh)


@functools.cache
def program(start, devices):
    """A trainer and its step."""
    trainer = trainer_of(config_of(start), devices)
    return trainer, trainer.jitted()


def steps(count, *, start=0, devices=1, state=None):
    """The states, of which the first may be given, and metrics of so many steps; and how often the step was compiled."""
    trainer, step = program(start, devices)
    placed = meshes.put_batch(batch(), trainer.mesh)
    states, metrics = [], []
    state = trainer.init() if state is None else tiny.placed(state._replace(key=jax.random.key(0)), trainer)
    for _ in range(count):
        states.append(jax.device_get(state._replace(key=None)))
        state, found = step(state, placed)
        metrics.append(jax.device_get(found))
    return [*states, jax.device_get(state._replace(key=None))], metrics, step._cache_size()


@pytest.fixture(scope="module")
def alone():
    return steps(2)


@pytest.mark.slow
def test_all_terms_train_the_same_on_eight_devices(alone):
    (first, _, last), metrics, _ = alone
    (_, _, last8), metrics8, _ = steps(2, devices=8, state=first)
    for one, eight in zip(metrics, metrics8):
        assert {
            "view_text/accuracy",
            "partner/accuracy",
            "nt_xent/pairs",
            "local_alignment/sentences_to_patches",
            "geometry/view",
            "geometry/position",
        } <= one.keys()
        assert one["nt_xent/pairs"] == one["geometry/pairs"] == 14
        for name in one:
            np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), last8.batch_stats, last.batch_stats)


@pytest.mark.slow
def test_micro_batches_give_the_gradient_of_one_pass(alone):
    """Heads see the whole batch behind them, with statistics of all of it."""
    found, state = [], alone[0][0]._replace(key=jax.random.key(0))
    for parts in (1, 4):
        run = jax.jit(trainer_of(config_of(parts=parts)).gradient)
        loss, _, stats, gradients = jax.device_get(run(state, batch()))
        found.append({"loss": loss, "stats": stats, "gradients": gradients})
    size = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(found[0]["gradients"])))
    jax.tree.map(lambda one, four: np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-5 * size), *found)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(found[0]["gradients"]["heads"]))


def of_heads(state):
    """Everything of the heads that a step could change: parameters, statistics, averages and moments."""
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    return {path: x for path, x in flat.items() if "heads/" in path}


def test_heads_wait_for_the_first_of_their_terms():
    """Bit for bit: no decay, no moments, no statistics; a NaN in one of them gets nowhere. From their step on they move."""

    def with_nan(state):
        params = jax.tree.map(lambda x: x, state.params)
        kernel = params["heads"]["local"]["patches"]["hidden"]["kernel"]
        params["heads"]["local"]["patches"]["hidden"]["kernel"] = jnp.asarray(kernel).at[0, 0].set(jnp.nan)
        return state._replace(params=params)

    states, metrics, compiled = steps(3, start=2)
    assert compiled == 1
    first, _, second, third = map(of_heads, states)
    assert {path.split("/")[0] for path in first} == {"params", "batch_stats", "opt_state", "ema"}
    for path, value in first.items():
        np.testing.assert_array_equal(second[path], value, err_msg=path)
    moved = {path for path in first if not np.array_equal(third[path], second[path])}
    still = {path for path in first if path.startswith(("params", "batch_stats"))} - moved
    # What comes before a norm takes no gradient but decays; only what is zero stays so.
    assert all(not np.any(first[path]) for path in still), still
    assert np.isnan(metrics[1]["geometry/view"]) and np.isfinite(metrics[2]["geometry/view"])
    before, after = (flatten_dict(state.params["image_encoder"]) for state in (states[0], states[2]))
    assert any(not np.array_equal(before[path], after[path]) for path in before)

    _, metrics, _ = steps(3, start=2, state=with_nan(states[0]))
    assert np.isfinite([m["loss"] for m in metrics[:2]]).all() and np.isfinite(metrics[1]["gradient_norm"])
    assert np.isnan(metrics[2]["loss"])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c.model.heads.__delattr__("simclr"),
            "config.losses.nt_xent needs the head 'simclr'.*cross_view, local",
        ),
        (lambda c: c.losses.__delattr__("nt_xent"), "no term of config.losses needs config.model.heads.simclr"),
        (lambda c: c.model.heads.update(far={"kind": "locl"}), "no kind of head 'locl'. Did you mean 'local'"),
        (lambda c: c.model.heads.local.update(with_free="x"), "config.model.heads.local has no option 'with_free'"),
        (lambda c: c.model.heads.update(far={"kind": "local"}), "config.model.heads.far has no stage"),
        (lambda c: c.model.heads.update(image={"kind": "simclr"}), "is one word, and not image or text"),
        (
            lambda c: c.model.heads.local.update(stage="block9"),
            "config.model.heads.local reads, 'image/block9'.*image/block1",
        ),
        (lambda c: c.model.heads.local.update(slots=(2,)), r"sees the views \(2,\), and the batch has 2"),
    ],
)
def test_wrong_heads_are_refused_at_the_start(change, message):
    config = config_of()
    with config.unlocked():
        change(config)
    with pytest.raises(UserError, match=message):
        trainer = trainer_of(config)
        jax.eval_shape(trainer.gradient, trainer.state, trainer.batch)


def test_heads_compute_in_the_type_of_the_model():
    config = config_of(start=1)
    config.model.dtype = "bfloat16"
    trainer = trainer_of(config)
    loss, _, stats, gradients = jax.eval_shape(trainer.gradient, trainer.state, trainer.batch)
    assert {x.dtype for x in jax.tree.leaves((loss, stats, gradients))} == {np.dtype("float32")}


def test_heads_beside_adapters():
    """Of a text tower with LoRA, whose dropout is at work only inside the tower."""
    config = config_of()
    config.model.lora.update(pattern="text_encoder/.*/query/kernel", rank=2)
    trainer = trainer_of(config)
    *_, gradients = jax.eval_shape(trainer.gradient, trainer.state, trainer.batch)
    assert set(gradients["heads"]) == set(HEADS) and "lora" in gradients


def test_heads_come_back_with_the_config_of_a_checkpoint():
    kept = complete(continuation.plain(config_of()))
    whole, again = (models.build(config.model, tiny.VOCABULARY) for config in (config_of(), kept))
    shapes = [
        jax.eval_shape(lambda model=model: init_variables(model, jax.random.key(0), (32, 32, 1), tiny.LENGTH))
        for model in (whole, again)
    ]
    assert shapes[0] == shapes[1] and set(shapes[0]["params"]["heads"]) == set(HEADS)


def test_a_model_without_heads_has_no_place_for_them():
    config = config_of()
    config.model.heads = {}
    assert models.build(config.model, tiny.VOCABULARY).heads is None
