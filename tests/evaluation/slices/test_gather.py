"""From folders to arrays: the same images of two folders, a bank of sentences, parts by split."""

import json

import numpy as np
import pytest
from shortcut_set import ShortcutSet

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import gather, sentences
from mammoclip_jax.evaluation.slices.join import joined


@pytest.fixture(scope="module")
def dataset():
    return ShortcutSet()


def test_rows_that_are_the_same_image_are_joined(dataset):
    other = ShortcutSet(shuffled=5)
    both = joined(dataset.index, other.index)
    assert both.counts == {"joined": 876, "only_first": 4, "only_second": 0} and (np.diff(both.first) > 0).all()
    left, right = dataset.index["image"].to_numpy()[both.first], other.index["image"].to_numpy()[both.second]
    np.testing.assert_array_equal(left, right)
    back = joined(other.index, dataset.index)
    assert back.counts == {"joined": 876, "only_first": 0, "only_second": 4}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda index: index.assign(dataset="another"), "no image in common"),
        (lambda index: index.assign(image="one"), "twice in one data set"),
        (lambda index: index.assign(patient="somebody"), "of two patients"),
    ],
)
def test_folders_that_do_not_belong_together_are_refused(dataset, change, message):
    with pytest.raises(UserError, match=message):
        joined(dataset.index, change(dataset.index.copy()))


def test_labels_become_columns(dataset):
    table = gather.described(dataset.index, ["skin_marker"])
    known = [str(json.loads(text)["skin_marker"]) for text in dataset.index["labels"]]
    assert list(table["skin_marker"]) == known and {"vendor", "density", "laterality"} <= set(table)
    with pytest.raises(UserError, match="no image has a label 'clip'; there are: density, mass, skin_marker"):
        gather.described(dataset.index, ["clip"])


def test_a_split_that_is_missing_is_named(dataset):
    class Unsplit:
        index = dataset.index.assign(split="train")

    with pytest.raises(UserError, match="the split 'val' has 0 images whose 'mass' is known"):
        gather.gather(None, Unsplit, "mass")


def test_the_bank_holds_each_sentence_once(dataset, tmp_path):
    bank = sentences.of_reports(dataset.index)
    assert bank == sorted(set(bank)) and len(bank) == 12 * 9 and all(len(text.split()) >= 2 for text in bank)
    assert sentences.bank(["b b", "a  a", "b b", "c"], most=1) == ["b b"]
    assert sentences.together([["b b", "a a"], ["b b"]]) == ["a a", "b b"]
    (tmp_path / "empty.txt").write_text("\n\nNegative.\n")
    with pytest.raises(UserError, match="holds no sentence"):
        sentences.of_file(tmp_path / "empty.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        sentences.of_file(tmp_path / "binary")
