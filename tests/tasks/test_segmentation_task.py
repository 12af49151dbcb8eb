"""A segmentation learns by the common loop: what its batches hold, what it refuses, one device and eight."""

import jax
import numpy as np
import pandas as pd
import pytest
from flax.traverse_util import flatten_dict

from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import labelled
from mammoclip_jax.data.store import masks as store
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import check, segmentation, task_of
from mammoclip_jax.tasks.labelled import positive_weights
from mammoclip_jax.training.mesh import make_mesh, put_batch

SIZE = (32, 24)
PREPROCESSING = {"geometry": "fit", "height": SIZE[0], "width": SIZE[1], "intensity": "voi", "bits": 8}
CHANNELS = ("heart", "lungs", "rib")


class Films:
    """Bright squares; the rib is unknown of every second image, and nothing is known of the last."""

    def __init__(self, folder, count=17):
        rng = np.random.default_rng(0)
        self.path, self.info = folder, {"fingerprint": "f", "preprocessing": PREPROCESSING, "counts": {"images": count}}
        self.masks = []
        for i in range(count):
            lungs, heart = np.zeros((2, *SIZE), bool)
            row, column = rng.integers(0, 12, 2)
            lungs[row : row + 12, column : column + 9] = True
            heart[:4] = i % 3 == 0
            self.masks.append({"lungs": lungs, "heart": heart} | ({"rib": lungs & heart} if i % 2 else {}))
        self.images = np.array([60 * m["lungs"] + rng.integers(0, 90, SIZE) for m in self.masks], np.uint8)
        views = dict(study="s", laterality="L", view="CC", split="train", labels="{}", boxes_canvas="[]")
        self.index = pd.DataFrame([{"patient": f"p{i}", "image": f"i{i}"} | views for i in range(count)])
        entries = (store.entry(i, CHANNELS, masks) for i, masks in enumerate(self.masks[:-1]))
        store.write(folder, "annotated", CHANNELS, entries, "f", {})

    def read(self, row):
        return self.images[row]


def config_of(**task):
    config = defaults()
    config.model.image.update(name="unet", width=4, depth=2)
    config.model.labels = ("rib", "lungs", "heart")
    config.image.channels = 1
    config.task.update(kind="segmentation", **task)
    config.data.folders.films = "films"
    config.train.update(batch_size=8, steps=40, warmup_steps=1, lr=1e-2)
    return config


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return Films(tmp_path_factory.mktemp("films"))


def test_a_batch_has_the_masks_in_the_order_of_the_labels(films):
    config = config_of()
    check(config)
    wanted = segmentation.target(config)
    found = labelled.examples([films], "train", wanted)
    assert len(found) == 16  # of the last nothing is known
    assert "rib 1 of 8, lungs 16 of 16, heart 6 of 16" in segmentation.describe(wanted, found)
    options = dict(batch_size=8, views=1, boxes=0, seed=0, read_threads=0)
    batch = next(labelled.train_iterator([films], found, channels=wanted.labels, **options))
    assert batch["masks"].shape == (8, 1, *SIZE) and batch["masks"].dtype == np.uint8
    for record, planes, known, target in zip(
        batch["record"][:, 0], batch["masks"][:, 0], batch["known"], batch["target"]
    ):
        for bit, name in enumerate(wanted.labels):
            truth = films.masks[record].get(name)
            assert known[bit] == (truth is not None)
            np.testing.assert_array_equal(planes >> bit & 1, 0 if truth is None else truth)
            assert target[bit] == (truth is not None and truth.any())
    assert "masks" not in next(labelled.train_iterator([films], found, **options))


def test_weights_of_pixels_are_those_outside_over_those_inside_where_it_is_known(films):
    wanted = segmentation.target(config_of())
    found = labelled.examples([films], "train", wanted)
    counted = segmentation.pixels(wanted, [films], found)
    masks = [np.stack([m[name] for m in films.masks[:-1] if name in m]) for name in wanted.labels]
    np.testing.assert_array_equal(counted, [[m.sum() for m in masks], [(~m).sum() for m in masks]])
    weights = positive_weights("balanced", *counted)
    np.testing.assert_allclose(weights, [(~m).sum() / m.sum() for m in masks], rtol=1e-6)
    np.testing.assert_allclose(counted.prior(np.ones(3)), [(m.sum() + 1) / (m.size + 2) for m in masks])
    np.testing.assert_allclose(segmentation.Pixels(np.array([20]), np.array([80])).prior(np.array([4])), 0.5, atol=0.01)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, *SIZE, 3)).astype(np.float32)
    batch = next(
        labelled.train_iterator([films], found, channels=wanted.labels, batch_size=8, views=1, boxes=0, seed=0)
    )
    values = {
        weight: segmentation.loss(config_of(dice_weight=0.0), np.full(3, weight))(lambda x: (x, {}), logits, batch)[0]
        for weight in (1.0, 2.0, 3.0)
    }
    inside = np.stack([batch["masks"][:, 0] >> bit & 1 for bit in range(3)], -1) * batch["known"][:, None, None]
    said_yes = (inside * np.log1p(np.exp(-logits))).mean(axis=(1, 2)).sum() / batch["known"].sum()
    np.testing.assert_allclose(values[2.0] - values[1.0], said_yes, rtol=1e-4)
    np.testing.assert_allclose(values[3.0] - values[1.0], 2 * said_yes, rtol=1e-4)


@pytest.mark.parametrize("pos_weight", ["", "root"])
def test_a_training_starts_at_the_share_of_each_channel(films, pos_weight):
    config = config_of(pos_weight=pos_weight)
    trainer, _ = task_of(config).prepare(config, {"films": films}, PREPROCESSING, make_mesh({"data": -1}))
    bias = trainer.init().params["outc"]["bias"]
    wanted = segmentation.target(config)
    counted = segmentation.pixels(wanted, [films], labelled.examples([films], "train", wanted))
    weights = np.sqrt(counted.outside / counted.inside) if pos_weight else 1.0
    odds = weights * (counted.inside + 1) / (counted.outside + 1)
    np.testing.assert_allclose(bias, np.log(odds), rtol=1e-5)


def test_what_it_cannot_learn_is_refused(films, tmp_path):
    for change, message in (
        (dict(unit="breast"), "masks are those of images"),
        (dict(focal_gamma=1.0), "nothing reads config.task.focal_gamma"),
    ):
        with pytest.raises(UserError, match=message):
            check(config_of(**change))
    config = config_of()
    config.model.stages = ("a", "b", "c")
    with pytest.raises(UserError, match="nothing reads config.model.stages"):
        check(config)
    for kind in ("classifier", "detector"):
        config = config_of(dice_weight=0.5)
        config.task.kind = kind
        with pytest.raises(UserError, match="nothing reads config.task.dice_weight"):
            check(config)
    with pytest.raises(UserError, match="no channel of the masks 'lung'. Did you mean 'lungs'"):
        labelled.examples([films], "train", labelled.Target(("lung",), masks=True))
    films_without = Films(tmp_path)
    store.remove(tmp_path, "annotated")
    with pytest.raises(UserError, match="has no masks"):
        labelled.examples([films_without], "train", labelled.Target(("lungs",), masks=True))


def train(config, films, devices, start=None):
    """(losses, parameters, the first state) of the config's steps."""
    mesh = make_mesh({"data": -1}, jax.devices()[:devices])
    trainer, iterator = task_of(config).prepare(config, {"films": films}, PREPROCESSING, mesh)
    start = trainer.init() if start is None else start
    state = jax.tree.map(
        lambda x, like: (
            jax.device_put(np.asarray(x), like.sharding)
            if x.dtype != start.key.dtype
            else jax.device_put(jax.random.clone(x), like.sharding)
        ),
        start,
        trainer.state,
    )
    step, losses = trainer.jitted(), []
    with jax.set_mesh(mesh):
        for _ in range(config.train.steps):
            state, metrics = step(state, put_batch(next(iterator), mesh))
            losses.append({name: float(value) for name, value in metrics.items()})
    return losses, jax.device_get(state.params), start


@pytest.mark.slow
def test_eight_devices_learn_what_one_does_and_it_is_learnt(films):
    config = config_of()
    config.data.flip_horizontal = 0.5
    config.augment.update(affine_probability=0.5, rotate=10.0)
    config.model.labels, config.train.lr, config.train.steps = ("lungs",), 5e-2, 80
    dice = [metrics["dice"] for metrics in train(config, films, 1)[0]]
    assert dice[-1] > 0.8 > 2 * dice[0]
    config.model.labels, config.train.steps = ("rib", "lungs", "heart"), 2
    one = train(config, films, 1)
    eight = train(config, films, 8, one[2])
    np.testing.assert_allclose([m["loss"] for m in eight[0]], [m["loss"] for m in one[0][:2]], rtol=2e-4)
    assert set(flatten_dict(eight[1])) == set(flatten_dict(one[1]))
