"""MaMA's linear probe and full fine-tuning by their configs: the numbers, what moves, and the steps as NumPy does them."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from test_labelled import PREPROCESSING, Films, mesh_of

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches.labelled import Target
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import classification, task_of
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import put_batch
from mammoclip_jax.training.optimizer import schedule

CONFIGS = Path(__file__).parent.parent.parent / "configs"
LABELS = [{"birads": max(i - 25, 0), "density": "AB"[i % 2], "cancer": int(i == 3)} for i in range(32)]


def load(name, label="birads"):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](label)


def tiny(name, label="birads"):
    """The config with a small encoder, images as they are and few steps."""
    config, plain = load(name, label), defaults()
    config.model.image = dict(
        name="dinov2", variant="small", width=16, depth=1, heads=2, patch=16, size=32, registers=2, pooling="all"
    )
    config.data.flip_horizontal = config.data.flip_vertical = 0.0
    config.data.read_threads = 0
    config.augment = plain.augment
    config.train.batch_size, config.train.warmup_steps, config.train.steps = 14, 2, 6
    return config


def rate(step, warmup, steps):
    if step < warmup:
        return 1e-5 + (5e-4 - 1e-5) * step / warmup
    return 1e-5 + (5e-4 - 1e-5) * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize("name", ["mama_probe", "mama_finetune"])
@pytest.mark.parametrize("label, classes", [("birads", "0123456"), ("density", "ABCD"), ("cancer", "01")])
def test_the_published_numbers(name, label, classes):
    config = load(name, label)
    train, task = config.train, config.task
    classification.check(config)
    assert classification.target(config) == Target(tuple(classes), label) and config.model.activation == "softmax"
    assert (train.batch_size, train.steps, train.optimizer, train.momentum) == (72, 8_000, "sgd", 0.9)
    assert (train.weight_decay, tuple(train.no_decay), task.sampling) == (1e-3, (), "balanced")
    assert config.model.image.pooling == "all" and config.augment.jitter_probability == 0.8
    assert tuple(config.model.frozen) == (("image",) if name == "mama_probe" else ())
    rates = schedule(train)
    for step in (0, 1, 50, 100, 101, 4_000, 7_999):
        np.testing.assert_allclose(rates(step), rate(step, 100, 8_000), rtol=1e-5)


def test_another_label_is_named():
    with pytest.raises(UserError, match="'birad'.*Did you mean 'birads'"):
        load("mama_probe", "birad")


def test_seven_classes_are_drawn_equally_often():
    """Of which one has 26 images, and the others one each."""
    _, iterator = task_of(config := tiny("mama_probe")).prepare(config, {"f": Films(LABELS)}, PREPROCESSING, mesh_of(1))
    shown = np.concatenate([next(iterator)["target"] for _ in range(10)])
    np.testing.assert_array_equal(shown.sum(axis=0), [20] * 7)


@pytest.mark.parametrize("name", ["mama_probe", "mama_finetune"])
def test_steps(name):
    """The probe's are those of softmax regression with torch's SGD on the features of an encoder of which no bit changes;
    fine-tuning moves all of the encoder but its last norm, which the features do not see."""
    config, mesh = tiny(name), mesh_of(1)
    trainer, iterator = task_of(config).prepare(config, {"films": Films(LABELS)}, PREPROCESSING, mesh)
    state = trainer.init()
    before = jax.device_get(state.params)
    encoder, pixels = models.image_encoder(config.model.image), augment.preprocess_options(config)
    apply = jax.jit(lambda x: encoder.apply({"params": before["image_encoder"]}, x, train=False)[0])
    head = {name: value.astype(np.float64) for name, value in before["classification_head"].items()}
    velocity, step = {name: np.zeros_like(value) for name, value in head.items()}, trainer.jitted()
    with jax.set_mesh(mesh):
        for number in range(4):
            batch = next(iterator)
            features = np.asarray(apply(augment.eval_images(batch["image"][:, 0], pixels)), np.float64)
            scores = np.exp(features @ head["kernel"] + head["bias"])
            error = (scores / scores.sum(axis=1, keepdims=True) - batch["target"]) / len(features)
            for part, gradient in (("kernel", features.T @ error), ("bias", error.sum(axis=0))):
                velocity[part] = 0.9 * velocity[part] + gradient + 1e-3 * head[part]
                head[part] = head[part] - rate(number, 2, 6) * velocity[part]
            state, _ = step(state, put_batch(batch, mesh))
    after = jax.device_get(state.params)
    still = jax.tree.map(np.array_equal, before["image_encoder"], after["image_encoder"])
    if name == "mama_finetune":
        assert not any(jax.tree.leaves({module: tree for module, tree in still.items() if module != "layernorm"}))
        assert all(jax.tree.leaves(still["layernorm"]))
        return
    assert all(jax.tree.leaves(still))
    for part, value in after["classification_head"].items():
        assert np.abs(value - before["classification_head"][part]).max() > 1e-5
        np.testing.assert_allclose(value, head[part], atol=1e-7)
