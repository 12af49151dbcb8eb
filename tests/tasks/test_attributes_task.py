"""Attributes learn by the common loop over maps that are computed once: the same loss as live, an encoder that stays as it
is, files, and what is refused."""

import json
import operator
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from test_resume import assert_same_bits

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import attribute_maps, check, task_of
from mammoclip_jax.training.mesh import make_mesh, put_batch

SIZE = (32, 32)
PREPROCESSING = {"geometry": "fit", "height": SIZE[0], "width": SIZE[1], "intensity": "voi", "bits": 8}
STAGES = ("stage1", "stage2")
LABELS = ("mass", "calcification")


class Images:
    """Noise, with labels; calcification is unknown of every third image."""

    def __init__(self, folder, count=17):
        rng = np.random.default_rng(0)
        self.path, self.info = folder, {"fingerprint": "f", "preprocessing": PREPROCESSING, "counts": {"images": count}}
        self.images = rng.integers(0, 255, (count, *SIZE), np.uint8)
        self.read_often = 0
        known = [{"mass": i % 2} | ({"calcification": int(i % 5 == 0)} if i % 3 else {}) for i in range(count)]
        views = dict(study="s", laterality="L", view="CC", split="train", boxes_canvas="[]")
        self.index = pd.DataFrame(
            [
                {"patient": f"p{i}", "image": f"i{i}", "labels": json.dumps(labels)} | views
                for i, labels in enumerate(known)
            ]
        )

    def read(self, row):
        self.read_often += 1
        return self.images[row]


def config_of(**task):
    config = defaults()
    config.model.image.update(name="resnet", variant="18", width=8, depths=(1, 1))
    config.model.labels, config.model.stages = LABELS, STAGES
    config.model.attributes.update(dim=6, prompts="phantom")
    config.image.channels = 1
    config.task.update(kind="attributes", temperature=0.07, **task)
    config.data.folders.images = "images"
    config.warm_start.encoder = dict(weights="run", load=("image_encoder/.*", "attributes/dictionary"))
    config.train.update(batch_size=8, steps=40, warmup_steps=1, lr=1e-2)
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return Images(tmp_path_factory.mktemp("images"))


VECTORS = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)


def with_vectors(variables):
    return {**variables, "batch_stats": {**variables["batch_stats"], "attributes": {"dictionary": VECTORS}}}


def train(config, images, workdir, devices=1, count=3, start=None):
    """(metrics of each step, the last state, the first)."""
    task, mesh, sets = task_of(config), make_mesh({"data": -1}, jax.devices()[:devices]), {"images": images}
    trainer, iterator = task.prepare(config, sets, PREPROCESSING, mesh, workdir=workdir)
    start = trainer.init(with_vectors) if start is None else start
    state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, trainer.state))
    task.start(config, trainer, state, sets, tokenize=None, workdir=workdir)
    state = jax.tree.map(jnp.copy, state)  # a step takes its arrays
    step, metrics = trainer.jitted(), []
    with jax.set_mesh(mesh):
        for _ in range(count):
            state, found = step(state, put_batch(next(iterator), mesh))
            metrics.append({name: float(value) for name, value in found.items()})
    return metrics, state, start


@pytest.fixture(scope="module")
def cached(images, tmp_path_factory):
    """Three steps over cached maps, and the folder."""
    workdir = tmp_path_factory.mktemp("cached")
    return train(config_of(), images, workdir), workdir


def test_cached_maps_give_the_loss_of_live_ones(cached, images, tmp_path):
    live, state, start = train(config_of(cached_maps=False), images, tmp_path, start=cached[0][2])
    for one, other in zip(cached[0][0], live, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert not any(tmp_path.iterdir())


def test_the_encoder_its_statistics_and_the_dictionary_stay_as_they_are(cached):
    _, state, start = cached[0]
    before, after = jax.device_get((start.params, start.batch_stats)), jax.device_get((state.params, state.batch_stats))
    assert_same_bits(before[0]["image_encoder"], after[0]["image_encoder"])
    assert_same_bits(before[1], after[1])
    for stage in STAGES:
        for x, y in zip(*(jax.tree.leaves(params[f"adapters_{stage}"]) for params in (before[0], after[0]))):
            assert not np.array_equal(x, y)


def test_eight_devices_learn_what_one_does(cached, images):
    """Over the maps that are there already."""
    (one, state, start), workdir = cached
    images.read_often = 0
    eight, there, _ = train(config_of(), images, workdir, 8, start=start)
    assert images.read_often == 0
    np.testing.assert_allclose([m["loss"] for m in eight], [m["loss"] for m in one], rtol=1e-4)
    for stage in STAGES:
        for x, y in zip(*(jax.tree.leaves(s.params[f"adapters_{stage}"]) for s in (state, there))):
            np.testing.assert_allclose(x, y, atol=3e-3)


def test_maps_are_made_anew_for_another_encoder_or_other_data(cached, images, tmp_path):
    shutil.copytree(cached[1] / "maps", tmp_path / "maps")
    start = cached[0][2]
    images.read_often = 0
    train(config_of(), images, tmp_path, count=0, start=start)
    assert images.read_often == 0
    other = start._replace(batch_stats=jax.tree.map(lambda x: x + 1, start.batch_stats))
    train(config_of(), images, tmp_path, count=0, start=other)
    assert images.read_often == 17
    changed = Images(tmp_path)
    changed.info["fingerprint"] = "g"
    train(config_of(), changed, tmp_path, count=0, start=other)
    assert changed.read_often == 17


def test_a_smaller_output_stride_makes_a_finer_grid():
    for stride, grid in ((32, (2, 2, 80)), (8, (8, 8, 80))):
        config = config_of()
        config.model.image = dict(name="efficientnet", variant="b0", width=0.25, depth=0.3, output_stride=stride)
        config.model.stages = ("stage7",)
        module = models.attribute_model(config.model)
        large = PREPROCESSING | {"height": 64, "width": 64}
        assert attribute_maps.shapes(module, config, large) == {"stage7": (grid, "float32")}


def test_what_it_cannot_learn_is_refused():
    check(config_of())
    for part, change, message in (
        ("task", dict(unit="breast"), "attributes are those of images"),
        ("task", dict(temperature=0.0), "must be above 0"),
        ("task", dict(pos_weight="balanced"), "nothing reads config.task.pos_weight"),
        ("task", dict(encoder="eval"), "nothing reads config.task.encoder"),
        ("model", dict(frozen=("image",)), "nothing reads config.model.frozen"),
        ("model", dict(activation="softmax"), "nothing reads config.model.activation"),
        ("model.text_classifier", dict(dim=3), "nothing reads config.model.text_classifier.dim"),
        ("model", dict(stages=()), "name the stages"),
        ("model.attributes", dict(prompts=""), "prompts is empty"),
        ("augment", dict(rotate=10.0), "nothing reads config.augment.rotate=10.0 .*cached_maps"),
        ("data", dict(flip_horizontal=0.5), "nothing reads config.data.flip_horizontal=0.5 .*cached_maps"),
        ("warm_start.encoder", dict(load=("image_encoder/.*",)), "loads attributes/dictionary"),
        ("warm_start.encoder", dict(weights=""), "loads image_encoder"),
        ("train.micro_batches", dict(image=2), "nothing reads config.train.micro_batches"),
    ):
        config = config_of()
        operator.attrgetter(part)(config).update(change)
        with pytest.raises(UserError, match=message):
            check(config)
    config = config_of(cached_maps=False)
    config.augment.rotate, config.data.flip_horizontal = 10.0, 0.5
    check(config)


@pytest.mark.parametrize("kind", ["classifier", "detector", "segmentation", "pretrain"])
def test_other_tasks_do_not_read_its_options(kind):
    for part, change in (
        ("task", dict(temperature=0.1)),
        ("task", dict(cached_maps=False)),
        ("attributes", dict(dim=3)),
    ):
        config = defaults()
        config.task.kind = kind
        (config.task if part == "task" else config.model.attributes).update(change)
        with pytest.raises(UserError, match=f"nothing reads config..*{next(iter(change))}"):
            check(config)
