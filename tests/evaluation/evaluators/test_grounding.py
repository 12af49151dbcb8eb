"""Sentences are found, and what they say is looked for, with a model made of arithmetic and by a small one that computes."""

import json

import jax
import numpy as np
import pytest
from fakes import SHAPE, FakeDataset, FakeModel
from tiny_subject import HEADED, RESNET, meta_of, variables_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.grounding import grounding, nearness
from mammoclip_jax.evaluation.evaluators.saliency import saliency
from mammoclip_jax.evaluation.page.report import _caption
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training.mesh import make_mesh

SIDES = {"L": "left", "R": "right"}


class Dataset(FakeDataset):
    """A mass has its sentence, behind one about the other breast; where it lies near the chest wall it is denied."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.silent = 0
        for row, boxes in enumerate(self.index["boxes_canvas"]):
            side = self.index["laterality"][row]
            other = SIDES["LR".replace(side, "")]
            texts = [f"No mass in the {SIDES[side]} breast."]
            if boxes != "[]":
                texts = [
                    f"Mass in the {other} breast. Dense. There is a mass in the {SIDES[side]} breast; it is {row} mm."
                ]
                if json.loads(boxes)[0]["box"][0] < 6:
                    texts, self.silent = [f"No mass in the {SIDES[side]} breast."], self.silent + 1
            self.index.at[self.index.index[row], "texts"] = texts


class Model(FakeModel):
    """hires_cam points at the sentence's own mass, grad_cam at the upper left pixel; with random weights all do."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.asked = dataset, []

    def text_directions(self, texts, method="grad_cam", stage=None):
        self.asked += texts
        return np.array([[len(text), 0] for text in texts], np.float32)

    def saliency(self, images, directions, *, stage, method, **options):
        assert directions.shape == (len(images), 2)
        if method == "brightness":
            return images.astype(np.float32) / 255
        heats = np.zeros((len(images), *SHAPE), np.float32)
        for heat, image in zip(heats, images):
            row = next(i for i, known in enumerate(self.dataset.images) if known is image or (known == image).all())
            x0, y0, x1, y1 = json.loads(self.dataset.index["boxes_canvas"][row])[0]["box"]
            if method == "grad_cam" or self.weights is not None:
                x0, y0, x1, y1 = 0, 0, 2, 2
            heat[y0:y1, x0:x1] = 1
        return heats


@pytest.fixture(scope="module")
def dataset():
    return Dataset(14)


def test_planted_heat_is_found_and_what_looks_elsewhere_is_not(dataset):
    model = Model(dataset)
    result = grounding(model, dataset, methods=("hires_cam", "grad_cam"), quantiles=(0.97,), resamples=50)
    at = {name: entry["value"] for name, entry in result.metrics.items()}
    assert at["mass/hires_cam/pointing_game"] == 1 == at["mass/hires_cam/localised_0.97_iou_0.5"]
    assert at["mass/grad_cam/pointing_game"] == 0 == at["mass/grad_cam/localised_0.97_iou_0.1"]
    assert at["mass/brightness/pointing_game"] == 1  # the square is the brightest of the breast
    for measure in ("pointing_game", "localised_0.97_iou_0.25"):
        for name in ("hires_cam", "grad_cam"):
            found = result.metrics[f"mass/{name}/{measure}_minus_brightness"]
            assert found["value"] == pytest.approx(at[f"mass/{name}/{measure}"] - at[f"mass/brightness/{measure}"])
    assert 0 < at["mass/chance/pointing_game"] < 0.2
    images = sum(boxes != "[]" for boxes in dataset.index["boxes_canvas"])
    assert dataset.silent and result.metrics["mass/without_sentence"]["n"] == images
    assert at["mass/without_sentence"] == dataset.silent == len(result.tables["without_sentence"])
    assert f"left out: {dataset.silent} of {images} with boxes of mass, 0 of 0 with boxes of calc" in result.protocol
    assert result.metrics["mass/hires_cam/pointing_game"]["n"] == images - dataset.silent
    nothing = result.metrics["calcification/hires_cam/pointing_game_minus_brightness"]
    assert nothing["value"] is None and "a sentence that affirms it" in nothing["reason"]


def test_the_sentence_is_the_own_breasts_and_stands_below_the_picture(dataset):
    model = Model(dataset)
    result = grounding(model, dataset, methods=("hires_cam",), labels=("mass",), resamples=0, gallery=3)
    rows, shown = result.tables["images"], result.tables["gallery"]
    assert set(model.asked) == {"There is a mass in the left breast;", "There is a mass in the right breast;"}
    assert all(SIDES[row.laterality] in row.sentence for row in rows.itertuples())
    assert len(shown) == 3 == len(result.figures) and set(shown["map"]) == {"hires_cam"}
    captions = [_caption(row) for row in shown.to_dict("records")]
    assert [(c["hit"], c["note"].strip("\u201c\u201d")) for c in captions] == [
        (True, text) for text in shown["sentence"]
    ]
    assert shown["sentence"].str.startswith("There is a mass").all() and set(shown["figure"]) == set(result.figures)


def test_a_map_scores_as_the_evaluator_saliency_scores_it(dataset):
    """On the images that both take."""
    told = Dataset(8)
    keep = told.index["texts"].map(lambda texts: not texts[0].startswith("No")).to_numpy()
    told.index = told.index[keep].reset_index(drop=True)
    told.images = [image for image, kept in zip(told.images, keep) if kept]
    mine = grounding(FakeModel(), told, methods=("grad_cam",), labels=("mass",), resamples=50, gallery=0).metrics
    theirs = saliency(FakeModel(), told, labels=("mass",), resamples=50, gallery=0).metrics
    for measure in ("pointing_game", "localised_0.95_iou_0.25", "localised_0.95_iou_0.5"):
        assert mine[f"mass/grad_cam/{measure}"] == theirs[f"mass/{measure}"]
    assert mine["mass/chance/pointing_game"]["value"] == pytest.approx(theirs["mass/chance"]["value"])
    assert mine["mass/centre/pointing_game"]["value"] == pytest.approx(theirs["mass/centre_guess"]["value"], abs=0.1)


def test_random_weights_stand_beside(dataset):
    model = Model(dataset)
    result = grounding(model, dataset, labels=("mass",), resamples=0, gallery=0, sanity=True)
    at = {name: entry["value"] for name, entry in result.metrics.items()}
    assert at["mass/hires_cam/pointing_game"] == 1 and at["mass/hires_cam_randomised/pointing_game"] == 0
    assert not any("brightness_randomised" in name for name in at) and "random weights" in result.protocol


def test_the_difference_has_the_interval_of_pairs():
    """Two maps that err on the same patients differ by less than either varies."""
    dataset = Dataset(40, seed=1)
    index = [i for i, boxes in enumerate(dataset.index["boxes_canvas"]) if boxes != "[]"]
    for i in index[::3]:
        dataset.images[i] = np.where(dataset.images[i] == 240, np.uint8(60), dataset.images[i])  # dark masses
    result = grounding(FakeModel(), dataset, methods=("grad_cam",), labels=("mass",), resamples=200, gallery=0).metrics
    own, difference = result["mass/grad_cam/pointing_game"], result["mass/grad_cam/pointing_game_minus_brightness"]
    assert 0.5 < own["value"] < 0.9 and own["high"] > own["low"]
    assert difference["value"] == 0 and "all resamples agree" in difference["reason"]


def test_the_map_of_the_centre():
    tissue = np.zeros((9, 8), bool)
    tissue[2:7, 0:5] = True
    heat = nearness(tissue)
    assert np.unravel_index(heat.argmax(), heat.shape) == (4, 2) and heat.max() == 1 and heat.min() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": ("masss",)}, "no label of the evaluator grounding 'masss'. Did you mean 'mass'"),
        ({"methods": ({"method": "hires_cam", "stages": "x"},)}, "has no stages: give method, stage, options or name"),
        ({"methods": ("hires_cam", {"method": "hires_cam"})}, "several maps 'hires_cam': give each a name"),
        ({"methods": ({"method": "hires_cam", "name": "centre"},)}, "several maps 'centre'"),
    ],
)
def test_what_is_wrong_is_said(dataset, options, message):
    with pytest.raises(UserError, match=message):
        grounding(FakeModel(), dataset, **options)


def model_of(encoder):
    size = dict(zip(("height", "width"), SHAPE))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return DualEncoder(variables_of(encoder), meta_of(encoder) | {"preprocessing": size}, 1, batch_size=4, mesh=mesh)


def test_a_local_head_is_asked_by_default_and_reads_the_sentence_in_its_text():
    """But for the sentence that text_length, 16 tokens, cuts."""
    dataset, model = Dataset(2), model_of(HEADED)
    for row, text in enumerate(["Dense. a mass.", "Extremely dense. a mass."] + ["No mass."] * 6):
        dataset.index.at[row, "texts"] = [text]
        dataset.index.at[row, "boxes_canvas"] = json.dumps([{"label": "mass", "box": [2, 20, 10, 28]}])
    given = []

    def saliency(images, directions, *, method, stage):
        given.append((method, stage, directions))
        return images.astype(np.float32) / 255

    model.saliency = saliency
    protocols = [
        grounding(model, dataset, labels=("mass",), resamples=0, gallery=0, context=context).protocol
        for context in (True, False)
    ]
    assert [asked[:2] for asked in given] == [("local_alignment", "stage2"), ("brightness", "")] * 2
    texts = ["Dense. a mass.", "a mass.", "Extremely dense. a mass."]
    vectors, there = model.embed_sentences(texts)
    assert there.sum(axis=1).tolist() == [2, 1, 0] and not np.allclose(vectors[0, 1], vectors[1, 0], atol=1e-3)
    np.testing.assert_allclose(given[0][2], [vectors[0, 1], vectors[1, 0]], atol=1e-6)
    np.testing.assert_allclose(given[2][2], [vectors[1, 0]] * 2, atol=1e-6)
    assert "reads the sentence within its text" in protocols[0] and "reads the sentence by itself" in protocols[1]


def test_methods_that_need_a_head_are_refused_without_one():
    with pytest.raises(UserError, match="local_alignment needs a dual encoder with a head of kind local"):
        grounding(model_of(RESNET), Dataset(1), methods=("local_alignment",))
    with pytest.raises(UserError, match="deletion_steps=3 scores the whole image's vector"):
        saliency(model_of(HEADED), Dataset(1), method="local_alignment", deletion_steps=3)
