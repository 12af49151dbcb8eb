"""Maps of a model in use: the same on 1 and 8 devices and in batches of any size, and errors that help."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_subject import HEADED, HEIGHT, RESNET, SCORED, VIT, WIDTH, directions, images, model_of, module_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain import METHODS
from mammoclip_jax.training.step import init_variables

OPTIONS = {"integrated_gradients": {"steps": 4}, "occlusion": {"window": 24, "stride": 12}}


@pytest.mark.parametrize("method", METHODS)
def test_devices_batches_and_padding_change_nothing(method):
    """13 images fill up the last batch, and must not see what fills it.

    To 1e-5 of the map's maximum: a batch's size decides in which order convolutions sum, on each processor another.
    """
    encoder = {"attention_rollout": VIT, "local_alignment": HEADED, "factor": SCORED}.get(method, RESNET)
    pictures, towards, options = images(13), directions(13), OPTIONS.get(method, {})
    found = model_of(encoder).saliency(pictures, towards, method=method, **options)
    assert found.shape == pictures.shape and found.min() >= 0
    highest = found.max(axis=(1, 2))
    assert (highest > 0).sum() > 10
    np.testing.assert_allclose(highest, highest > 0, rtol=1e-6)
    alone = model_of(encoder, batch_size=2, devices=1)
    np.testing.assert_allclose(alone.saliency(pictures, towards, method=method, **options), found, atol=1e-5)
    np.testing.assert_allclose(
        alone.saliency(pictures[5:6], towards[5:6], method=method, **options), found[5:6], atol=1e-5
    )


def test_curves_do_not_depend_on_devices_either():
    pictures, towards = images(9), directions(9)
    tissue = pictures > 20
    found = [
        model_of(RESNET, size, devices).deletion_curves(pictures, towards, pictures / 255, tissue, steps=3)
        for size, devices in ((8, 8), (2, 1))
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_texts_are_their_embeddings_and_a_raw_map_is_the_signed_one():
    model, pictures = model_of(RESNET), images(3)
    texts = ["a mass", "no mass", "a mass"]
    found = model.saliency(pictures, texts)
    np.testing.assert_array_equal(found, model.saliency(pictures, model.embed_text(texts)))
    np.testing.assert_array_equal(found, model.saliency(pictures, texts, stage="stage2"))
    options = {"method": "integrated_gradients", "steps": 4}
    raw = model.saliency(pictures, texts, raw=True, **options)
    assert (raw.min(axis=(1, 2)) < 0).all()
    cut = np.maximum(raw, 0)
    np.testing.assert_allclose(
        model.saliency(pictures, texts, **options), cut / cut.max(axis=(1, 2), keepdims=True), atol=1e-6
    )


def test_random_weights_change_the_maps_and_only_within():
    model, pictures, towards = model_of(RESNET), images(2), directions(2)
    trained = model.saliency(pictures, towards)
    fresh = model.randomise(seed=5)
    with pytest.raises(RuntimeError, match="in the middle"), model.using(fresh):
        random = model.saliency(pictures, towards)
        raise RuntimeError("in the middle")
    assert abs(random - trained).max() > 0.1
    np.testing.assert_array_equal(model.saliency(pictures, towards), trained)
    wanted = jax.jit(lambda key: init_variables(module_of(RESNET), key, (HEIGHT, WIDTH, 1), 16))(jax.random.key(5))
    wanted = flatten_dict(wanted["params"])
    for path, value in flatten_dict(jax.device_get(fresh)["params"]).items():
        np.testing.assert_allclose(value, wanted[path], rtol=1e-5, atol=1e-7)


def test_a_cascade_keeps_what_a_stage_needs():
    model = model_of(RESNET)
    old = flatten_dict(jax.device_get(model._variables), sep="/")
    new = flatten_dict(jax.device_get(model.randomise(seed=5, keep="stage1")), sep="/")
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    below = ("image_encoder/conv1", "image_encoder/bn1", "image_encoder/layer1")
    assert not any(part in path for part in below for path in changed)
    assert {"params/image_encoder/layer2_0/conv1/kernel", "params/image_projection/dense/kernel"} <= changed
    maps = []
    for variables in (model._variables, model.randomise(seed=5, keep="stage1")):
        with model.using(variables):
            maps.append(jax.device_get(jax.jit(model._encode)(variables, model._blank() + 1)[1]))
    np.testing.assert_array_equal(maps[0]["stage1"], maps[1]["stage1"])
    assert abs(maps[0]["stage2"] - maps[1]["stage2"]).max() > 1e-3
    with pytest.raises(UserError, match="no stage of the image encoder 'stage9'"):
        model.randomise(keep="stage9")


def test_options_stages_and_methods_are_checked():
    model, pictures, towards = model_of(RESNET), images(1), directions(1)
    for options, message in (
        ({"method": "occlusion", "windows": 3}, "occlusion has no option 'windows'. Did you mean 'window'"),
        ({"method": "grad_cam", "steps": 3}, "grad_cam has no option 'steps'.*none"),
        ({"method": "integrated_gradients", "stage": "stage1"}, "looks at no single stage.*leave stage='stage1' out"),
        ({"method": "occlusions"}, "no method 'occlusions'. Did you mean 'occlusion'"),
        ({"stage": "stage3"}, "no stage 'stage3'"),
    ):
        with pytest.raises(UserError, match=message):
            model.saliency(pictures, towards, **options)


def test_a_transformer_is_asked_where_its_pooling_still_sees_the_patches():
    for pooling, stage in (("cls", "block2"), ("all", "block3"), ("mean", "last"), ("cls+mean", "last")):
        model = model_of(VIT | {"pooling": pooling})
        assert model.map_stage("grad_cam") == stage
    assert model.saliency(images(1), directions(1)).max() == pytest.approx(1)
