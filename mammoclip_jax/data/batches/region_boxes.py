"""The boxes that a detector learns from: annotated ones, or the regions of tables that were found without any."""

import json
from collections.abc import Sequence

from mammoclip_jax.data.batches.regions import ANNOTATED
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError


def with_boxes_of(dataset: Dataset, sources: Sequence[str]) -> Dataset:
    """The data set with the boxes of `sources` in place of its own; its records and labels are the same.

    Args:
        sources: "boxes", the annotated ones, and names of tables of regions, whose labels are the boxes'. A region of a
            label that the image is known to lack is left out.

    Raises:
        UserError: none is named, or there is no such table.
    """
    if not sources:
        raise UserError(f'config.data.regions.sources is empty: name "{ANNOTATED}", or tables of regions.')
    if tuple(sources) == (ANNOTATED,):
        return dataset
    index = dataset.index.copy()
    known = [json.loads(labels) for labels in index["labels"]]
    boxes = [json.loads(own) if ANNOTATED in sources else [] for own in index["boxes_canvas"]]
    for name in sources:
        if name == ANNOTATED:
            continue
        frame = region_tables.read(dataset.path, name).frame
        corners = frame[list(region_tables.BOX)].astype(float).values.tolist()
        for row, label, box in zip(frame["row"], frame["label"], corners, strict=True):
            labels = [one for one in label.split(", ") if one and known[row].get(one) != 0]
            if labels:
                boxes[row].append({"labels": labels, "box": box})
    index["boxes_canvas"] = [json.dumps(own) for own in boxes]
    return Dataset(dataset.path, dataset.info, index)
