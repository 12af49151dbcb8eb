"""Classifiers and detectors learn by the same loop as pretraining: what a batch holds, the loss, many devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import labelled
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.features import boxes_of
from mammoclip_jax.tasks import classification, detection, task_of
from mammoclip_jax.training.mesh import make_mesh, put_batch

HEIGHT, WIDTH = 64, 48
PREPROCESSING = {"geometry": "fit", "height": HEIGHT, "width": WIDTH, "intensity": "voi", "bits": 8}


class Films:
    """Exams of four views in memory; the labels of image i are those of `labels[i]`."""

    def __init__(self, labels, patients=None, split="train", boxes=None):
        self.path, self.info = "films", {"preprocessing": PREPROCESSING, "counts": {"images": len(labels)}}
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (len(labels), HEIGHT, WIDTH), dtype=np.uint8)
        views = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]
        self.index = pd.DataFrame(
            [
                {
                    "dataset": "films",
                    "patient": patients[i] if patients else f"p{i // 4}",
                    "study": f"s{i // 4}",
                    "image": f"i{i}",
                    "laterality": views[i % 4][0],
                    "view": views[i % 4][1],
                    "split": split,
                    "labels": json.dumps(found),
                    "boxes_canvas": json.dumps(boxes[i] if boxes else []),
                }
                for i, found in enumerate(labels)
            ]
        )

    def read(self, row):
        return self.images[row]


def config_of(kind="classifier", labels=("mass",), **task):
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.labels = labels
    config.image.channels = 1
    config.task.update(kind=kind, **task)
    config.train.update(batch_size=8, steps=10, warmup_steps=1, lr=1e-3)
    if kind == "detector":
        config.model.stages = ("stage3", "stage5", "head")
        config.model.features = 16
    return config


def mesh_of(devices):
    return make_mesh({"data": -1}, jax.devices()[:devices])


def steps(config, films, devices, count=2, start=None):
    """(losses, the last parameters, the first state) of some steps; a state that is given is put onto the devices."""
    mesh = mesh_of(devices)
    trainer, iterator = task_of(config).prepare(config, {"films": films}, PREPROCESSING, mesh)
    start = trainer.init() if start is None else start
    state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, trainer.state))
    state = jax.tree.map(jnp.copy, state)  # a step takes its arrays
    step, losses = trainer.jitted(), []
    with jax.set_mesh(mesh):
        for _ in range(count):
            state, metrics = step(state, put_batch(next(iterator), mesh))
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), start


LABELS = [{"mass": int(i % 3 == 0)} for i in range(32)]
BOXES = [[{"label": "mass", "box": [4, 6, 30, 40]}] if i % 3 == 0 else [] for i in range(32)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, task",
    [
        ("classifier", {"unit": "exam"}),
        ("classifier", {"unit": "breast", "encoder": "eval"}),
        pytest.param("detector", {}, marks=pytest.mark.slow),
    ],
)
def test_many_devices_learn_what_one_does(kind, task):
    """The detector, in the slow run, with the depthwise convolutions that a partitioner may get wrong."""
    films = Films(LABELS, boxes=BOXES)
    config = config_of(kind, **task)
    if kind == "classifier":
        config.model.image = dict(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.combine = "attention"
    config.augment.update(affine_probability=0.5, rotate=10.0)
    config.data.flip_horizontal = 0.5
    one = steps(config, films, 1)
    eight = steps(config, films, 8, start=one[2])
    np.testing.assert_allclose(one[0], eight[0], rtol=2e-4)  # two steps, of which the second amplifies rounding
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(eight[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3)  # AdamW's first steps are of the size lr, whatever


def test_loss_of_yes_no_labels_is_the_weighted_cross_entropy_of_what_is_known():
    logits = np.array([[2.0, -1.0], [0.5, 3.0], [-1.0, 0.0]], np.float32)
    batch = {
        "view_mask": None,
        "target": np.array([[1, 0], [0, 0], [1, 1]], np.float32),
        "known": np.array([[1, 1], [1, 0], [1, 1]], bool),
        "mask": np.array([1, 1, 0], bool),
    }
    config = config_of(labels=("mass", "calcification"), pos_weight="3")
    found = [labelled.Example(0, (), (1.0, 0.0))]
    loss_fn = classification.loss(config, classification.target(config), found)
    loss, _, _ = loss_fn(lambda *inputs, method: (logits, {}), None, batch)
    probability = 1 / (1 + np.exp(-logits))
    naive = [-3 * np.log(probability[0, 0]), -np.log(1 - probability[0, 1]), -np.log(1 - probability[1, 0])]
    np.testing.assert_allclose(loss, np.mean(naive), rtol=1e-6)


def test_balanced_weights_are_negatives_over_positives():
    wanted = labelled.Target(("mass", "calcification"))
    found = [labelled.Example(0, (), (float(i == 0), np.nan)) for i in range(5)]
    for name, expected in (("balanced", [4.0, 1.0]), ("root", [2.0, 1.0]), ("", [1.0, 1.0]), ("3", [3.0, 3.0])):
        np.testing.assert_array_equal(classification.positive_weights(name, wanted, found), expected)


def test_an_exam_has_its_four_views_and_those_that_lack_are_masked():
    films = Films(LABELS[:7])
    found = labelled.examples([films], "train", labelled.Target(("mass",)), "exam")
    assert len(found) == 2
    batch = next(labelled.train_iterator([films], found, batch_size=2, views=4, boxes=0, seed=0, read_threads=0))
    for row, there in zip(batch["record"], batch["view_mask"]):
        whole = set(range(4)) if there.all() else {4, 5, 6}
        assert set(row[there]) == whole
    np.testing.assert_array_equal(np.sort(batch["view_mask"].sum(axis=1)), [3, 4])


def test_boxes_of_an_image_and_its_places():
    films = Films(LABELS, boxes=BOXES)
    wanted = labelled.Target(("mass",), boxes=True)
    found = labelled.examples([films], "train", wanted)
    batch = next(
        labelled.train_iterator(
            [films], found, batch_size=8, views=1, boxes=labelled.most_boxes(found), seed=0, read_threads=0
        )
    )
    for record, boxes, classes in zip(batch["record"][:, 0], batch["boxes"][:, 0], batch["box_classes"][:, 0]):
        expected = [4, 6, 30, 40] if record % 3 == 0 else [0, 0, 0, 0]
        np.testing.assert_array_equal(boxes, [expected])
        assert classes.tolist() == [0 if record % 3 == 0 else -1]


def test_a_box_of_several_findings_counts_for_each():
    """And the loss wants all of its classes of the anchors that are matched to it."""
    both = [[{"label": "mass", "labels": ["mass", "skin"], "box": [4, 6, 30, 40]}]]
    films = Films([{"mass": 1, "skin": 1}], boxes=both)
    (example,) = labelled.examples([films], "train", labelled.Target(("skin", "mass"), boxes=True))
    assert example.target == (1, 1) and [kind for _, kind, *_ in example.boxes] == [1, 0]
    np.testing.assert_array_equal(boxes_of(films.index.iloc[0], "skin"), [[4, 6, 30, 40]])
    assert "1 boxes" in detection.describe(labelled.Target(("skin", "mass"), boxes=True), [example])


def test_a_label_without_its_box_is_unknown_to_a_detector(caplog):
    """Somewhere the image shows what would be taught as background; an image known to lack it is background."""
    films = Films(
        [{"mass": 1, "skin": 0}, {"mass": 1, "skin": 1}, {"mass": 0, "skin": 0}],
        boxes=[[{"label": "mass", "box": [4, 6, 30, 40]}], [], []],
    )
    found = labelled.examples([films], "train", labelled.Target(("mass", "skin"), boxes=True))
    np.testing.assert_array_equal([example.target for example in found], [[1, 0], [0, 0]])
    assert "neither taught as there nor as background: mass 1, skin 1" in caplog.text
    assert len(labelled.examples([films], "train", labelled.Target(("mass", "skin")))) == 3


def test_boxes_that_no_anchor_overlaps_are_counted(caplog):
    thin = [[{"label": "mass", "box": [4, 6, 7, 60]}] if i % 3 == 0 else [] for i in range(32)]
    task_of(config_of("detector")).prepare(
        config_of("detector"), {"films": Films(LABELS, boxes=thin)}, PREPROCESSING, mesh_of(1)
    )
    assert "11 of 11 boxes overlap no anchor by 0.5 and teach nothing: config.task.force_match=True" in caplog.text
    caplog.clear()
    config = config_of("detector", force_match=True)
    task_of(config).prepare(config, {"films": Films(LABELS, boxes=thin)}, PREPROCESSING, mesh_of(1))
    assert "no anchor" not in caplog.text


def test_a_detector_may_see_images_with_boxes_alone():
    config = config_of("detector", without_boxes="leave_out")
    _, iterator = task_of(config).prepare(config, {"films": Films(LABELS, boxes=BOXES)}, PREPROCESSING, mesh_of(1))
    assert all((next(iterator)["box_classes"] == 0).any(axis=(1, 2)).all() for _ in range(3))
    with pytest.raises(UserError, match="leave_out takes no other"):
        task_of(config).prepare(config, {"films": Films(LABELS)}, PREPROCESSING, mesh_of(1))


def test_balanced_sampling_shows_the_classes_equally_often():
    films = Films([{"density": "A" if i < 2 else "B"} for i in range(32)])
    found = labelled.examples([films], "train", labelled.Target(("A", "B"), "density"))
    iterator = labelled.train_iterator(
        [films], found, batch_size=8, views=1, boxes=0, seed=0, sampling="balanced", read_threads=0
    )
    shown = np.concatenate([next(iterator)["target"] for _ in range(10)])
    np.testing.assert_array_equal(shown.sum(axis=0), [40, 40])


def test_folds_keep_patients_together_and_the_test_part_is_never_trained_on():
    labels = [{"density": "ABC"[i % 3]} for i in range(60)]
    films = Films(labels, patients=[f"p{i // 2}" for i in range(60)])
    tested = []
    for fold in range(5):
        config = config_of(labels=("A", "B", "C"), label="density", folds=5, fold=fold)
        config.model.activation = "softmax"
        index = task_of(config).split(config, {"films": films_as_dataset(films)})["films"].index
        assert (index.groupby("patient")["split"].nunique() == 1).all()
        tested += index["image"][index["split"] == "test"].tolist()
    assert sorted(tested) == sorted(films.index["image"])


def films_as_dataset(films):
    from mammoclip_jax.data.store.shards import Dataset

    return Dataset(films.path, films.info, films.index.assign(shard=0, position=0))


def test_a_fraction_is_of_patients_and_smaller_ones_are_part_of_larger():
    films = films_as_dataset(Films(LABELS * 5, patients=[f"p{i // 2}" for i in range(160)]))
    parts = []
    for fraction in (0.1, 0.5):
        config = config_of(fraction=fraction)
        index = task_of(config).split(config, {"films": films})["films"].index
        assert (index.groupby("patient")["split"].nunique() == 1).all()
        parts.append(set(index["patient"][index["split"] == "train"]))
    assert parts[0] < parts[1] and len(parts[0]) <= 10 and 40 <= len(parts[1]) <= 42


@pytest.mark.parametrize(
    "values, expected",
    [([[1, 0, 0], [0, 0, 1]], [0, 0, 1]), ([[0, 1, 0], [np.nan] * 3], [0, 1, 0]), ([[np.nan] * 3] * 2, [np.nan] * 3)],
)
def test_a_breast_has_the_last_class_of_its_images(values, expected):
    found = labelled.joined(np.array(values, np.float32), np.zeros(len(values), int), classes=True)
    np.testing.assert_array_equal(found, [expected])


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(labels=()), "labels is empty"),
        (dict(kind="classifyer"), "Did you mean 'classifier'"),
        (dict(label="density"), "softmax"),
        (dict(unit="brest"), "Did you mean 'breast'"),
        (dict(sampling="equal"), "balanced"),
        (dict(pos_weight="many"), "balanced, root, a number"),
        (dict(labels=("birads",)), "no yes/no label"),
        (dict(labels=("masses",)), "Did you mean 'mass'"),
        (dict(folds=3, fold=3), "from 0 to 2"),
        (dict(folds=2, fold=0), "must be 3 or more"),
        (dict(folds=100), "100 folds"),
        (dict(fraction=0.0), "fraction of 0"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    films = films_as_dataset(Films([{"mass": i % 2, "birads": 4} for i in range(16)]))
    with pytest.raises(UserError, match=said):
        config = config_of(**change)
        datasets = task_of(config).split(config, {"films": films})
        task_of(config).prepare(config, datasets, PREPROCESSING, mesh_of(1))
