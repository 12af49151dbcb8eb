"""Every encoder in the trainer: each parameter's gradient on eight devices is that on one, and the tables' contract.

The partitioner of jax can multiply the kernel gradients of depthwise and grouped convolutions by a device count
while the loss stays right (training/mesh.py, test_partitioner.py); so every parameter of every encoder is compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import slash_name

HEIGHT, WIDTH, LENGTH, VOCABULARY = 64, 48, 12, 60
IMAGE = {
    "clip_resnet": dict(variant="RN50", width=8, depths=(1, 1, 1, 1)),
    "clip_vit": dict(variant="base", width=16, depth=2, heads=2),
    "convnext": dict(width=8, depths=(1, 1), depthwise="native"),
    "dinov2": dict(variant="small", width=16, depth=2, heads=2, size=56, registers=2),
    "efficientnet": dict(variant="b0", width=0.25, depth=0.3, depthwise="native"),
    "resnet": dict(variant="18", width=8, depths=(1, 1, 1, 1)),
    "swin": dict(width=32, depths=(2, 1), heads=(1, 2)),
    "vit": dict(variant="tiny", width=16, depth=2, heads=2),
}
TEXT = {
    "bert": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    "clip_text": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
    "gpt2": dict(n_embd=16, n_layer=1, n_head=2),
    "modernbert": dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        global_attn_every_n_layers=2,
        local_attention=4,
    ),
}
# Every image encoder, with the text encoders in turn.
PAIRS = [(image, sorted(TEXT)[i % len(TEXT)]) for i, image in enumerate(sorted(IMAGE))]


def tiny_config(image, text):
    config = defaults()
    config.model.image.update(name=image, **IMAGE[image])
    config.model.text.update(name=text, **TEXT[text])
    config.model.dim = 8
    config.image.channels = 1
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=1)
    return config


def gradients_on(config, mesh, state=None):
    """(loss, {path: gradient}, the state); a state that is given is put onto the mesh."""
    config.train.batch_size, config.data.text_length = 16, LENGTH
    trainer = make_trainer(config, VOCABULARY, {"height": HEIGHT, "width": WIDTH, "bits": 8}, mesh)
    if state is None:
        state = trainer.init()
        # Away from the start, where a layer scale of 1e-6 or a zero hides the gradients of what it multiplies.
        state = state._replace(params=jax.tree.map(lambda p: p + 0.3 if p.ndim == 1 else p, state.params))
    state = tiny.placed(state, trainer)
    run = jax.jit(trainer.gradient)
    batch = tiny.batch(16, HEIGHT, WIDTH, LENGTH, VOCABULARY, flips=True)
    loss, _, _, gradients = jax.device_get(run(state, meshes.put_batch(batch, mesh)))
    return loss, {slash_name(path): g for path, g in jax.tree_util.tree_leaves_with_path(gradients)}, state


def test_every_encoder_has_its_small_form_here():
    assert set(IMAGE) == set(models.IMAGE_ENCODERS) and set(TEXT) == set(models.TEXT_ENCODERS)
    assert {text for _, text in PAIRS} == set(TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("image, text", PAIRS)
def test_every_gradient_is_the_same_on_eight_devices(image, text):
    config = tiny_config(image, text)
    loss, one, state = gradients_on(config, meshes.make_mesh({}, jax.devices()[:1]))
    loss8, eight, _ = gradients_on(config, meshes.make_mesh({"data": 4, "fsdp": 2}), state)
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    largest, compared = max(np.linalg.norm(g) for g in one.values()), 0
    for path, gradient in one.items():
        assert np.isfinite(gradient).all() and np.isfinite(eight[path]).all(), path
        size = np.linalg.norm(gradient)
        if size > 1e-5 * largest:  # below, it is zero but for rounding: a bias before a normalisation, of a key
            difference = np.linalg.norm(eight[path] - gradient) / size
            assert difference < 1e-3, f"{path}: {difference}"
            compared += 1
        else:
            assert np.linalg.norm(eight[path]) < 1e-4 * largest, path
    assert compared > 0.8 * len(one)
    towers = {path.partition("/")[0] for path in one}
    assert {"image_encoder", "text_encoder", "image_projection", "text_projection", "logit_scale"} == towers


@pytest.mark.parametrize("name", sorted(IMAGE))
def test_stages_and_width_are_what_an_image_encoder_says(name):
    encoder = models.image_encoder({"name": name} | IMAGE[name])
    image = jnp.zeros((2, HEIGHT, WIDTH, 1))
    seen = {}

    def run(key):
        variables = encoder.init(key, image, train=False)
        pooled, stages = encoder.apply(variables, image, train=False)
        seen.update(stages)  # while it is traced: what is returned comes back sorted by name
        return pooled, stages

    pooled, stages = jax.eval_shape(run, jax.random.key(0))
    assert tuple(seen) == tuple(encoder.stage_names)
    assert pooled.shape[:-1] == (2,) and pooled.dtype == jnp.float32
    grids = encoder.stage_grids(HEIGHT, WIDTH)
    assert set(grids) == set(stages)
    for stage, (stride, _) in grids.items():
        n, height, width, _ = stages[stage].shape
        assert n == 2 and abs(height * stride - HEIGHT) < 2 * stride and abs(width * stride - WIDTH) < 2 * stride, stage


@pytest.mark.parametrize("table, name", [(IMAGE, name) for name in sorted(IMAGE)] + [(TEXT, n) for n in sorted(TEXT)])
def test_a_wrong_option_is_named(table, name):
    with pytest.raises(UserError, match="has no option 'depht'"):
        if table is IMAGE:
            models.image_encoder({"name": name, "depht": 3})
        else:
            models.text_encoder({"name": name, "depht": 3}, VOCABULARY)
