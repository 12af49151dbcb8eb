"""Metadata: what an index and its labels say, and which of it can be a hypothesis."""

import json

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation.slices import columns


def index(count=4):
    labels = [
        {"age": 71, "density": "D", "implant": 1, "race": "Black", "machine": 49},
        {"age": 39, "density": "B", "implant": 0},
        {"age": 55, "implant": False},
        {},
    ]
    return pd.DataFrame(
        {
            "dataset": "d",
            "image": [f"i{k}" for k in range(count)],
            "vendor": ["GE", "GE", "Hologic", ""],
            "view": ["CC", "MLO", "CC", "MLO"],
            "laterality": ["L", "R", "", "L"],
            "labels": [json.dumps(one) for one in labels],
            "transform": [json.dumps({"original": [3328, 2560]})] * 3 + [""],
        }
    )


def test_every_column_that_is_known_of_some_image():
    table = columns.metadata(index())
    assert table["age"].tolist() == ["70+", "<40", "50-59", "unknown"]
    assert table["implant"].tolist() == ["1", "0", "0", "unknown"]
    assert table["image_size"].tolist() == ["3328 x 2560"] * 3 + ["unknown"]
    assert table["race"].tolist()[0] == "Black" and table["machine"].tolist()[0] == "49"
    assert not {"ethnicity", "procedure", "photometric_interpretation", "dataset", "image", "site"} & set(table)


def test_a_value_is_a_hypothesis_where_enough_have_it_and_enough_do_not():
    table = pd.DataFrame(
        {
            "density": ["A"] * 2 + ["B"] * 40 + ["C"] * 38 + ["unknown"] * 20,
            "view": ["CC", "MLO"] * 50,
            "vendor": ["GE"] * 98 + ["other"] * 2,
            "exam": [f"e{k}" for k in range(100)],
            "age": np.linspace(30, 80, 100),
            "cancer": ["1", "0"] * 50,
        }
    )
    made = {one.name: one for one in columns.from_columns(table, least=30, leave_out=("cancer",))}
    assert list(made) == ["density=B", "density=C", "view=CC", "high age"]
    assert made["high age"].of_numbers and (made["view=CC"].column, made["view=CC"].value) == ("view", "CC")
