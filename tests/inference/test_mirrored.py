"""Mirrored looks: means of both, each by a formula of its own."""

import jax
import numpy as np
import pytest
from toys import WIDTH, Toy, breasts

from mammoclip_jax.data.text.reports import swap_laterality
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.prompts import score, text_bank
from mammoclip_jax.inference.scorers import scorer_of
from mammoclip_jax.models.heads import COMBINATIONS, Classifier


def test_probabilities_are_the_mean_of_both_looks_and_of_no_neighbour():
    images, model = breasts(), Mirrored(Toy())
    found = model.classify(images)
    for image, (mass, peak) in zip(images, found, strict=True):
        left, right = image[:, : WIDTH // 3].mean() / 255, image[:, -(WIDTH // 3) :].mean() / 255
        assert mass == pytest.approx((left + right) / 2, rel=1e-5) and peak == pytest.approx(
            image.max() / 255, rel=1e-5
        )
    np.testing.assert_array_equal(model.classify(images[2:3]), found[2:3])
    views, there = images[:4].reshape(2, 2, *images.shape[1:]), np.array([[True, True], [True, False]])
    whole = model.classify_views(views, there)
    np.testing.assert_allclose(whole, [found[:2].mean(axis=0), found[2]], rtol=1e-5)
    assert model.looks.mirror and "mirror" in str(model.key()["looks"])


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_views_need_no_other_places_since_nothing_knows_their_order(combine):
    class Encoder:
        def __call__(self, image, *, train, offsets):
            return image.mean(axis=(1, 2)) @ np.ones((1, 3), np.float32) + image[:, 0, 0], {}

    head = Classifier(Encoder(), 2, combine)
    views = np.random.default_rng(0).normal(size=(2 * 4, 3, 3, 1)).astype(np.float32)
    there = np.array([[True] * 4, [True, True, True, False]])
    order = np.array([1, 0, 3, 2])
    other = views.reshape(2, 4, 3, 3, 1)[:, order].reshape(views.shape)
    variables = head.init(jax.random.key(0), views, there, method="of_views")
    plain = head.apply(variables, views, there, method="of_views")
    np.testing.assert_allclose(head.apply(variables, other, there[:, order], method="of_views"), plain, atol=1e-6)


def test_texts_that_name_a_side_are_asked_of_the_mirrored_image_with_the_other_one():
    images, plain = breasts(), Toy(kind="dual_encoder", labels=())
    model, texts = Mirrored(plain), ["a mass in the left breast", "no mass", "right"]
    cosines = model.embed_image(images) @ model.embed_text(texts).T
    swapped = plain.embed_text([swap_laterality(text) for text in texts])
    expected = (
        plain.embed_image(images) @ plain.embed_text(texts).T + plain.embed_image(images[:, :, ::-1]) @ swapped.T
    ) / 2
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert np.abs(expected - plain.embed_image(images) @ plain.embed_text(texts).T).max() > 0.05
    np.testing.assert_allclose(np.linalg.norm(model.embed_image(images), axis=1), 1, rtol=1e-6)


def test_a_scorer_of_a_mirrored_dual_encoder_takes_its_prompts():
    images, model = breasts(), Mirrored(Toy(kind="dual_encoder", labels=()))
    pairs = load_prompts({"mass": {"positive": "a mass", "negative": "no mass"}})
    scorer = scorer_of(model, pairs, "score", "", "")
    np.testing.assert_allclose(
        scorer.score(model, images)["mass"], score(model.embed_image(images), text_bank(model, pairs))["mass"]
    )
    assert scorer.towards["mass"].shape == (4,) and "mirrored" in scorer.aggregation["view"]
    assert scorer.options["mirror"] and not scorer.options["calibrated"]


def test_the_map_is_the_mean_of_the_map_and_the_mirrored_back_one():
    images, plain = breasts(3), Toy()
    both = plain.saliency(images, ["mass"] * 3), plain.saliency(images[:, :, ::-1], ["mass"] * 3)[:, :, ::-1]
    found, mean = Mirrored(plain).saliency(images, ["mass"] * 3), sum(both) / 2
    np.testing.assert_allclose(found, mean / mean.max(axis=(1, 2), keepdims=True), rtol=1e-5)
    raw = Mirrored(plain).saliency(images, ["mass"] * 3, raw=True)
    slope = np.linspace(2, 1, WIDTH)
    np.testing.assert_allclose(raw, (images.astype(np.float64) - 100) / 155 * (slope + slope[::-1]) / 2, rtol=1e-5)
    assert not Mirrored(plain).saliency(np.full_like(images, 7), ["mass"] * 3).any()


def test_boxes_are_mirrored_back_and_a_box_scores_what_both_looks_say_of_it():
    images = np.zeros((2, 16, 12), np.uint8)
    images[0, 4:8, 6:9] = 255  # found alike by both looks, at columns 6 to 9 and 3 to 6
    model = Mirrored(Toy(kind="detector"))
    found = model.detect(images)
    assert found.valid.sum(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[0, 0], [6, 4, 9, 8])
    assert found.scores[0, 0] == pytest.approx(((0.5 + 6 / 40) + (0.5 + 3 / 40)) / 2)
    assert found.classes[0, :2].tolist() == [0, -1] and not found.boxes[1].any()
    assert not model.detect(images, threshold=0.7).valid.any()  # one look's box is above it, what both say is not


def test_what_a_single_look_can_do_is_not_done_silently():
    model = Mirrored(Toy())
    with pytest.raises(AttributeError, match="Mirrored has no 'deletion_curves'"):
        model.deletion_curves
    with pytest.raises(UserError, match="this model is a segmenter"):
        Mirrored(Toy(kind="segmenter"))
    assert model.labels == ("mass", "calcification") and model.step == 5 and repr(model) == "<Mirrored <toy>>"
