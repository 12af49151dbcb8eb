"""One round of weakly supervised detection: attributes say where, a table keeps it, a detector's batches hold it."""

import jax
import numpy as np
import pytest
from small_phantoms import prepared
from tiny_attributes import LABELS, attributes_of

from mammoclip_jax.config import defaults
from mammoclip_jax.data.regions import job
from mammoclip_jax.data.regions.of_maps import above, located
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.features import label_values
from mammoclip_jax.inference.region_methods.factor import factor
from mammoclip_jax.tasks import task_of
from mammoclip_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    made = prepared(tmp_path_factory.mktemp("pseudo"), exams=3, height=96, width=64, mass_prevalence=0.6)
    made.index["split"] = "train"
    return made


def test_from_attributes_to_a_detectors_batch(dataset):
    model = attributes_of(dataset.info["preprocessing"])
    info = job.find(dataset, "factor", lambda: factor(dataset, model=model, stage="stage2", least=0.0, most=1.0))
    frame = region_tables.read(dataset.path, "factor").frame
    known = {label: label_values(dataset.index, label) == 1 for label in LABELS}
    for row, label, score in zip(frame["row"], frame["label"], frame["score"]):
        assert known[label][row] and 0 < score <= 1
    assert len(frame) == info["counts"]["regions"] <= sum(there.sum() for there in known.values())
    first = frame.iloc[0]
    heat = model.saliency(dataset.read(first.row)[None], [first.label], method="factor", stage="stage2", raw=True)[0]
    boxes, _ = located(heat, above(heat, heat > 0, 0.95))
    np.testing.assert_allclose(first[list(region_tables.BOX)].astype(float), boxes[0])

    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.update(labels=LABELS, stages=("stage3", "stage5", "head"), features=16)
    config.image.channels = 1
    config.task.update(kind="detector", force_match=True)
    config.train.update(batch_size=4, steps=10, warmup_steps=1)
    config.data.regions.sources = ("factor",)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    _, batches = task_of(config).prepare(config, {"set": dataset}, dataset.info["preprocessing"], mesh)
    batch = next(batches)
    seen = 0
    for row, view_boxes, classes in zip(batch["record"][:, 0], batch["boxes"][:, 0], batch["box_classes"][:, 0]):
        own = frame[frame["row"] == row]
        found = {LABELS[k]: box.tolist() for box, k in zip(view_boxes, classes) if k >= 0}
        assert found == {label: list(box) for label, *box in own[["label", *region_tables.BOX]].itertuples(index=False)}
        seen += len(own)
    assert seen


def test_images_that_were_prepared_otherwise_are_refused(dataset):
    with pytest.raises(UserError, match="prepared otherwise than the images"):
        factor(dataset, model=attributes_of(dataset.info["preprocessing"] | {"height": 48}))
