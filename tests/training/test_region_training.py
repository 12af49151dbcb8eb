"""Training with regions: the same gradient on 1 and 8 devices and in micro-batches; what is asked for and not there."""

import jax
import numpy as np
import pytest
import tiny

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import pretrain
from mammoclip_jax.training import mesh as meshes

PREPROCESSING = {"height": 32, "width": 32, "bits": 8}
PLACES, CONCEPTS = 3, 3


class Tokenizer:
    """A letter is a token."""

    def encode(self, texts, length):
        ids = [[ord(letter) % tiny.VOCABULARY for letter in text[:length]] for text in texts]
        mask = np.arange(length) < np.array([len(own) for own in ids])[:, None]
        return np.array([own + [0] * (length - len(own)) for own in ids], np.int32), mask


def config_of(parts=1):
    config = defaults()
    config.model.image.update(name="vit", variant="tiny", width=16, depth=1, heads=2, patch=8)
    config.model.text.update(
        name="bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.model.dim = 8
    config.model.heads.regions = dict(stages=("last",), size=3, hidden=6, dim=8)
    config.model.image_head = "regions"
    config.data.update(text_length=tiny.LENGTH)
    config.data.regions.update(places=PLACES, concepts="phantom")
    config.image.channels = 1
    config.augment.update(affine_probability=1.0, rotate=10.0)
    terms = dict(temperature=0.2, teacher_temperature=0.5)
    config.losses = dict(view_text={}, region_concept=dict(terms), distillation=dict(terms))
    config.train.update(steps=4, warmup_steps=1, batch_size=16)
    config.train.micro_batches.update(image=parts, text=parts)
    return config


def batch():
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 32, (16, 2, PLACES, 2, 2)), axis=-2).reshape(16, 2, PLACES, 4)
    allowed = rng.random((16, 2, PLACES, CONCEPTS)) < 0.7
    return tiny.batch(16, flips=True) | {
        "boxes": corners.astype(np.float32),
        "box_classes": np.where(rng.random((16, 2, PLACES)) < 0.8, 0, -1).astype(np.int32),
        "region_allowed": allowed,
        "region_cosines": rng.uniform(-1, 1, allowed.shape).astype(np.float32),
        "mask": np.arange(16) < 15,
    }


@pytest.mark.slow
def test_same_gradient_on_eight_devices_and_in_micro_batches():
    found, state = [], None
    for devices, parts in ((1, 1), (8, 1), (1, 4)):
        mesh = meshes.make_mesh({"data": -1}, jax.devices()[:devices])
        trainer = pretrain.make_trainer(config_of(parts), tiny.VOCABULARY, PREPROCESSING, mesh, Tokenizer())
        state = tiny.placed((state or trainer.init())._replace(key=jax.random.key(0)), trainer)
        loss, metrics, _, gradients = jax.jit(trainer.gradient)(state, meshes.put_batch(batch(), mesh))
        state = jax.device_get(state._replace(key=None))
        found.append(jax.device_get((loss, metrics, gradients)))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found[0], other)
    loss, metrics, gradients = found[0]
    assert 0 < metrics["region_concept/regions"] == metrics["distillation/regions"] < 15 * 2 * PLACES
    # The head learns of images and regions; the words of the concepts are learnt too.
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["heads"]["regions"]))
    assert "image_projection" not in gradients


def test_concepts_are_the_mean_of_their_prompts_and_padding_counts_nothing():
    one, four = (pretrain._concepts(config_of(parts), Tokenizer()) for parts in (1, 4))
    assert len(four.ids) % 4 == 0 and len(one.ids) < len(four.ids)
    np.testing.assert_allclose(four.share.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(four.share[:, len(one.ids) :], 0)
    np.testing.assert_array_equal((one.share > 0).sum(0), 1)
    assert pretrain._concepts(defaults(), Tokenizer()) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.regions.places": 0, "data.regions.concepts": ""}, "config.data.regions.places is 0"),
        ({"losses": {"view_text": {}}}, "no term of config.losses reads config.data.regions"),
        ({"augment.crop": (0.5, 1.0)}, "config.augment.crop"),
        ({"data.boxes": 2}, "fill the same places"),
    ],
)
def test_what_does_not_go_together_is_an_error(change, message):
    config = config_of()
    with config.unlocked():
        for name, value in change.items():
            if name == "losses":
                config.losses = value
            else:
                config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=message):
        pretrain.check(config)
