"""What a user gives a model: mistakes are named with what was probably meant."""

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import inputs

SIZE = (6, 4)
GOOD = np.zeros((2, *SIZE), np.uint8)


def test_what_is_right_comes_back_as_it_is():
    assert inputs.images(GOOD, SIZE) is GOOD
    assert inputs.images([GOOD[0], GOOD[1]], SIZE).shape == (2, *SIZE)
    assert inputs.images(GOOD.astype(np.uint16), SIZE).dtype == np.uint16
    assert inputs.images(np.zeros((1, 9, 9), np.uint8), None).shape == (1, 9, 9)
    assert inputs.images(GOOD[:, None], SIZE, views=True).shape == (2, 1, *SIZE)
    assert inputs.texts(("a", "b")) == ["a", "b"]
    assert inputs.texts(np.array(["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize(
    "given, said",
    [
        ("film.dcm", r"names of files: model.read_images\(files\) reads them"),
        (["film.dcm"], "names of files"),
        (GOOD[0], r"shape \[6, 4\]: one image is images\[None\]"),
        (GOOD[..., None], r"shape \[2, 6, 4, 1\]: images are grey"),
        (np.zeros((0, *SIZE), np.uint8), r"no image: the array has the shape \[0, 6, 4\]"),
        ([], "no image"),
        ([GOOD[0], GOOD[0][:3]], "several sizes"),
        (GOOD + np.int64(200), r"int64: they reach from 200 to 200; images.astype\(np.uint8\) keeps them"),
        (GOOD + np.int64(300), r"images.astype\(np.uint16\) keeps them"),
        (GOOD - np.int64(3), "and these are int64"),
        (GOOD / 255.0, "float64: they reach from 0 to 0; normalisation is the model's part"),
        (np.zeros((2, 4, 6), np.uint8), r"6 x 4 pixels \(height x width\), and these 4 x 6"),
        (np.zeros((2, 2, 6, 4), np.uint8), r"\[N, H, W\] of uint8 or uint16.* shape \[2, 2, 6, 4\]"),
    ],
)
def test_images_that_are_none_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        inputs.images(given, SIZE)


def test_views_of_one_breast_need_a_dimension_for_breasts():
    with pytest.raises(UserError, match=r"\[N, V, H, W\].*the views of one are images\[None\]"):
        inputs.images(GOOD, SIZE, views=True)


@pytest.mark.parametrize(
    "given, said",
    [("mass", r"letter by letter: \['mass'\]"), ([], "empty"), (["mass", 3], "one is int: 3"), ([None], "NoneType")],
)
def test_texts_are_lists_of_texts(given, said):
    with pytest.raises(UserError, match=said):
        inputs.texts(given)


def test_there_is_one_text_or_label_for_each_image():
    assert inputs.pairs(2, ["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match=r"one of the texts for each image: \['mass'\] \* len"):
        inputs.pairs(2, "mass")
    with pytest.raises(UserError, match=r"4 images and 1 labels or directions.*as \['mass'\] \* 4"):
        inputs.pairs(4, ["mass"], ("mass", "cancer"))
    with pytest.raises(UserError, match="4 images and 2 texts or directions: give one for each image"):
        inputs.pairs(4, np.zeros((2, 8)))


def test_files_are_a_list_of_files_that_are_there(tmp_path):
    file = tmp_path / "a.dcm"
    file.touch()
    assert inputs.files([str(file)]) == [file]
    for given, said in (
        (str(file), "must be a list, and this is one path"),
        ([], "the list of files is empty"),
        ([file, tmp_path / "b.dcm"], r"b.dcm is not there, or is no file \(1 of 2 files are missing\)"),
        ([tmp_path], "is no file"),
    ):
        with pytest.raises(UserError, match=said):
            inputs.files(given)
