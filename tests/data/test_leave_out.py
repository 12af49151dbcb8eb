"""Images that their flags keep out of training and evaluation: nothing takes them, and the others keep their places."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.data import leave_out
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.features import select
from mammoclip_jax.tasks import check, task_of

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def dataset() -> Dataset:
    flags = ["", "spot", "outside_masked,for_processing", "outside_masked", "", "spot,specimen"]
    index = pd.DataFrame(
        {
            "flags": flags,
            "split": ["train", "train", "test"] * 2,
            "patient": list("abcdef"),
            "labels": ['{"cancer": 1}', '{"cancer": 0}'] * 3,
            "shard": 0,
            "position": range(6),
        }
    )
    return Dataset(Path("films"), {"name": "films"}, index)


def test_nothing_reads_what_is_left_out(dataset, caplog):
    with caplog.at_level(logging.INFO):
        found = leave_out.unused(dataset, ("for_processing", "spot"))
    assert list(found.index["split"]) == ["train", "left out", "left out", "train", "train", "left out"]
    assert list(select(found.index, "all")) == [0, 3, 4] and list(select(found.index, "train")) == [0, 3, 4]
    assert "films: 3 of 6 images are not used" in caplog.text and "2 left out, spot" in caplog.text
    assert list(leave_out.unused(dataset, ()).index["split"]) == list(dataset.index["split"])
    assert list(dataset.index["split"]) == ["train", "train", "test"] * 2


def test_folds_do_not_bring_it_back(dataset):
    config = defaults()
    config.model.labels = ("cancer",)
    config.task.update(kind="classifier", folds=3)
    found = task_of(config).split(config, {"films": leave_out.unused(dataset, ("spot",))})["films"].index["split"]
    assert list(np.flatnonzero(found == leave_out.SPLIT)) == [1, 5] and set(found) >= {"train", "test"}


def test_a_name_that_is_no_flag_is_told(dataset):
    with pytest.raises(UserError, match="Did you mean 'for_processing'"):
        leave_out.unused(dataset, ("for_procesing",))


def test_every_task_has_it():
    for kind in ("classifier", "detector"):
        config = defaults()
        config.data.update(leave_out=("spot",))
        config.data.folders.films = "films"
        config.model.labels = ("mass",)
        config.task.kind = kind
        check(config)


def test_every_flag_of_the_docs_can_be_left_out_by():
    table = DOCS.read_text().split("## Flags")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert len(named) > 20 and set(named) <= set(leave_out.FLAGS)
