"""The training step: devices, schedule, rules on parameters, temperature, augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import Term
from mammoclip_jax.models import efficientnet
from mammoclip_jax.tasks.pretrain import contrast, make_trainer
from mammoclip_jax.training import augment
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import make_optimizer, schedule, slash_name
from mammoclip_jax.training.step import init_state, make_gradient_fn, make_train_step, total_loss

HEIGHT, WIDTH, LENGTH, VOCABULARY = 64, 48, 12, 60


EFFICIENTNET = dict(name="efficientnet", variant="b0", width=0.24, drop_rate=0.1, drop_connect_rate=0.2)
VIT = dict(name="vit", variant="tiny", width=16, depth=1, heads=2)  # compiles soonest


def tiny_config(image=VIT):
    config = defaults()
    config.model.image.update(image)
    config.model.text.update(
        name="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.model.dim = 16
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=20.0, translate=0.1, scale=(0.8, 1.2), shear=10.0)
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=4, lr=1e-3)
    return config


def tiny_batch(breasts=16, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < rng.integers(3, LENGTH, (breasts, 2, 1))
    return {
        "image": rng.integers(0, 255, (breasts, 2, HEIGHT, WIDTH), dtype=np.uint8),
        "token_ids": rng.integers(0, VOCABULARY, (breasts, 2, LENGTH), dtype=np.int32),
        "token_mask": mask,
        "flip_horizontal": rng.random(breasts) < 0.5,
        "flip_vertical": rng.random(breasts) < 0.5,
        "record": np.zeros((breasts, 2), np.int32),
        "source": np.zeros(breasts, np.int32),
        "mask": np.ones(breasts, bool),
    }


def trainer_of(config, mesh):
    config.train.batch_size, config.data.text_length = 16, LENGTH
    return make_trainer(config, VOCABULARY, {"height": HEIGHT, "width": WIDTH, "bits": 8}, mesh)


def build(config, mesh):
    trainer = trainer_of(config, mesh)
    return trainer.init(), trainer.gradient, trainer.step


# What tests/conftest.py switches off.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    **({"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else {}),  # jax 0.12 has no other
}


@pytest.fixture(scope="module", autouse=True)
def two_stages():
    """EfficientNet with two of its seven stages: they have all the kinds of blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "STAGES", tiny.STAGES)
        yield


@pytest.fixture(scope="module")
def start():
    """A first state of EfficientNet's tower and BERT's."""
    return trainer_of(tiny_config(EFFICIENTNET), meshes.make_mesh({}, jax.devices()[:1])).init()


def gradients_on(mesh, start, **compiler_options):
    """(loss, batch statistics, gradients) of that state."""
    trainer = trainer_of(tiny_config(EFFICIENTNET), mesh)
    run = jax.jit(trainer.gradient, compiler_options=compiler_options)
    found = run(tiny.placed(start, trainer), meshes.put_batch(tiny_batch(), mesh))
    loss, _, stats, gradients = jax.device_get(found)
    return loss, stats, gradients


def assert_same(one, other):
    """Per parameter, since a wrong factor on a depthwise kernel shows neither in the loss nor under Adam."""
    (loss, stats, gradients), (other_loss, other_stats, other_gradients) = one, other
    assert abs(loss - other_loss) < 1e-5 * abs(loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, other_stats)
    scale = max(np.linalg.norm(g) for g in jax.tree.leaves(gradients))
    compared = 0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(other_gradients)):
        if np.linalg.norm(a) > 1e-6 * scale:  # below, the gradient is zero but for rounding (a bias before BN)
            ratio = np.linalg.norm(b) / np.linalg.norm(a)
            assert abs(ratio - 1) < 1e-3, f"{slash_name(path)}: {ratio}"
            compared += 1
    assert compared > 50


@pytest.fixture(scope="module")
def alone(start):
    return gradients_on(meshes.make_mesh({}, jax.devices()[:1]), start)


@pytest.mark.slow  # in the quick run test_all_encoders.py and the contract of the encoders stand for it
@pytest.mark.parametrize("shape", [{"data": -1}, {"data": 2, "fsdp": 2, "space": 2}])  # two axes: test_all_encoders.py
def test_every_gradient_is_the_same_on_eight_devices(shape, start, alone):
    assert_same(alone, gradients_on(meshes.make_mesh(shape), start))


@pytest.mark.slow
def test_a_program_compiled_as_users_have_it_gives_the_same(start, alone):
    assert_same(alone, gradients_on(meshes.make_mesh({"data": -1}), start, **OPTIMISED))


def test_loss_falls_on_a_batch_seen_again_and_again():
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    config = tiny_config()
    config.augment.affine_probability = 0.0
    state, _, step = build(config, mesh)
    step = jax.jit(step, donate_argnums=0)
    batch = meshes.put_batch(tiny_batch(), mesh)
    seen = []
    for _ in range(12):
        state, metrics = step(state, batch)
        seen.append(float(metrics["loss"]))
    assert int(state.step) == 12
    assert np.mean(seen[-3:]) < 0.9 * np.mean(seen[:3])


def test_published_schedule():
    """Linear to lr in the warm-up, then lr cos^2(pi/2 t): at its start, middle and end."""
    config = tiny_config().train
    config.update(steps=1100, warmup_steps=100, lr=5e-5)
    rate = schedule(config)
    for step, expected in ((0, 0), (50, 2.5e-5), (100, 5e-5), (600, 5e-5 * np.cos(np.pi / 4) ** 2), (1100, 0)):
        np.testing.assert_allclose(rate(step), expected, atol=1e-12)


def test_other_schedules():
    config = tiny_config().train
    config.update(steps=1100, warmup_steps=100, lr=5e-5)
    for name, late in (("linear", (5e-5, 2.5e-5, 0)), ("constant", (5e-5, 5e-5, 5e-5))):
        config.schedule = name
        rates = [schedule(config)(step) for step in (0, 50, 100, 600, 1100)]
        np.testing.assert_allclose(rates, (0, 2.5e-5, *late), atol=1e-12)
    config.warmup_steps = 0
    assert float(schedule(config)(0)) == np.float32(5e-5)
    config.schedule = "cosin"
    with pytest.raises(UserError, match="cosine"):
        schedule(config)


def test_frozen_parameters_stay_and_excluded_ones_do_not_decay():
    params = {"image": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "text": {"kernel": jnp.ones(3)}}
    config = tiny_config().train
    config.update(frozen=("text/.*",), no_decay=(".*/bias",), weight_decay=0.5, warmup_steps=1, lr=0.1, steps=3)
    optimizer = make_optimizer(config, params)
    state, zeros = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        updates, state = optimizer.update(zeros, state, params)
    assert float(updates["image"]["kernel"][0]) < 0
    assert float(updates["image"]["bias"][0]) == 0 and float(updates["text"]["kernel"][0]) == 0
    config.frozen = ("txt/.*",)
    with pytest.raises(UserError, match="no parameter path matches 'txt/"):
        make_optimizer(config, params)


def test_logit_scale_is_clamped_on_the_parameter():
    params, config, optimizer = {"logit_scale": jnp.log(jnp.float32(4.0))}, tiny_config().train, optax.sgd(1.0)
    config.logit_scale_max = 5.0
    step = make_train_step(lambda state, batch: (0.0, {}, {}, {"logit_scale": jnp.float32(-3.0)}), optimizer, config)
    state, metrics = step(init_state({"params": params}, optimizer, jax.random.key(0), config), None)
    np.testing.assert_allclose(metrics["logit_scale"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["logit_scale"], np.log(5.0), rtol=1e-6)


def test_the_average_moves_by_one_minus_its_decay():
    params, gradients = {"kernel": jnp.array([1.0, -2.0])}, {"kernel": jnp.array([3.0, 5.0])}
    config = tiny_config().train
    config.ema_decay = 0.9
    optimizer = optax.sgd(1.0)
    statistics = {"mean": jnp.array([2.0])}
    step = make_train_step(
        lambda state, batch: (0.0, {}, jax.tree.map(lambda x: x + 1, state.batch_stats), gradients), optimizer, config
    )
    state = init_state({"params": params, "batch_stats": statistics}, optimizer, jax.random.key(0), config)
    for _ in range(2):
        state, _ = step(state, None)
    # Weights 1, -2, -5 and -2, -7, -12: of each step a tenth goes into the average.
    average = state.ema["params"]["kernel"]
    np.testing.assert_allclose(average, [0.9 * (0.9 - 0.2) - 0.5, 0.9 * (-1.8 - 0.7) - 1.2], rtol=1e-6)
    # The running statistics are averaged with them: 2, 3, 4. With the raw ones the average is another network.
    np.testing.assert_allclose(state.ema["batch_stats"]["mean"], [0.9 * (0.9 * 2 + 0.3) + 0.4], rtol=1e-6)


def test_each_step_draws_anew_and_a_step_done_again_the_same():
    class Model:
        """Vectors that are the mean of a row and a draw of the dropout."""

        def apply(self, variables, rows, *others, train, rngs, mutable, method):
            means = rows.reshape(len(rows), -1).mean(1)
            return (jnp.stack([means, jax.random.uniform(rngs["dropout"], len(rows))], 1), {}), {}

    def vectors(step):
        state = init_state({"params": {"logit_scale": jnp.zeros(())}}, optax.sgd(1.0), jax.random.key(0), config.train)
        term = Term("term", lambda embeddings, batch, mesh: (0.0, {"image": embeddings.image}), 1.0, 0, ())
        preprocess = augment.preprocess_options(config)
        loss = contrast(Model(), [term], preprocess, None, config.train.micro_batches)
        run = make_gradient_fn(loss, preprocess)
        return np.asarray(run(state._replace(step=jnp.int32(step)), tiny_batch(4))[1]["term/image"])

    config = tiny_config()
    config.augment.affine_probability = 1.0
    config.image.intensity = "range"  # else all means are alike
    np.testing.assert_array_equal(vectors(3), vectors(3))
    assert (vectors(3) != vectors(4)).all()


def test_a_term_that_has_not_started_is_not_computed():
    """A NaN of it reaches neither the loss nor a gradient, and its metrics are NaN; from its step on it counts."""

    def term(embeddings, batch, mesh):
        return jnp.sum(jnp.log(embeddings)), {"share": jnp.float32(0.5)}

    def plain(embeddings, batch, mesh):
        return jnp.sum(embeddings), {}

    terms = [Term("plain", plain, 1.0, 0, ()), Term("late", term, 2.0, 3, ())]

    @jax.jit
    def run(x, step):
        return jax.value_and_grad(lambda x: total_loss(terms, x, None, None, step), has_aux=True)(x)

    (loss, metrics), slope = run(jnp.array([-1.0, 2.0]), 2)
    assert loss == 1 and slope.tolist() == [1, 1] and np.isnan(metrics["late/share"])
    (loss, metrics), slope = run(jnp.array([1.0, 2.0]), 3)
    np.testing.assert_allclose(loss, 3 + 2 * np.log(2), rtol=1e-6)
    assert slope.tolist() == [3, 2] and metrics["late/share"] == 0.5


def test_batch_and_mesh_sizes_are_checked():
    mesh = meshes.make_mesh({"data": -1})
    config = tiny_config()
    config.train.batch_size = 12
    with pytest.raises(UserError, match="batch_size=12 does not split evenly over 8 devices"):
        meshes.check_batch_size(config, mesh)
    config.train.batch_size = 16
    config.train.micro_batches.text = 8
    with pytest.raises(UserError, match="micro_batches.text=8 does not split 16 breasts with 2 texts"):
        meshes.check_batch_size(config, mesh)
    with pytest.raises(UserError, match="there are 8"):
        meshes.make_mesh({"data": 3})


PLAIN = augment.Preprocess(mean=0.25, std=0.5, channels=3, intensity="range")


def test_normalisation():
    image = np.array([[[0, 51], [102, 255]]], np.uint8)
    expected = (image[0] / 255 - 0.25) / 0.5
    for channel in range(3):
        np.testing.assert_allclose(augment.eval_images(image, PLAIN)[0, ..., channel], expected, rtol=1e-5)
    sixteen = image.astype(np.uint16) * 257
    np.testing.assert_allclose(augment.eval_images(sixteen, PLAIN), augment.eval_images(image, PLAIN), atol=1e-5)
    stretched = PLAIN._replace(intensity="minmax")
    np.testing.assert_allclose(augment.eval_images(image // 2, stretched)[0, 1, 1, 0], 1.5, rtol=1e-5)
    assert np.isfinite(augment.eval_images(np.full((1, 4, 4), 7, np.uint8), stretched)).all()


def test_flips_follow_the_batch():
    batch = tiny_batch(4)
    batch["flip_horizontal"] = np.array([True, False, True, False])
    batch["flip_vertical"] = np.array([True, True, False, False])
    options = PLAIN._replace(channels=1)
    draws = augment.draw(batch, jax.random.key(0), options)
    flat = batch["image"].reshape(-1, HEIGHT, WIDTH)
    ours = np.asarray(augment.train_images(flat, draws, options)).reshape(4, 2, HEIGHT, WIDTH)
    plain = (batch["image"] / 255 - 0.25) / 0.5
    expected = [plain[0][:, ::-1, ::-1], plain[1][:, ::-1], plain[2][:, :, ::-1], plain[3]]
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-5)


def test_affine_moves_a_point_as_its_matrix_says():
    image = np.zeros((21, 31), np.float32)
    image[14, 9] = 1.0
    angle = np.deg2rad(90)
    matrix = jnp.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 2.0]])
    moved = np.asarray(augment.warp(image, matrix))
    row, column = np.unravel_index(moved.argmax(), moved.shape)
    source = np.asarray(matrix) @ np.array([row - 10, column - 15, 1]) + (10, 15)
    np.testing.assert_allclose(source, (14, 9), atol=1e-4)


def test_affine_stays_within_its_ranges_and_leaves_some_alone():
    options = PLAIN._replace(affine_probability=0.5, rotate=20.0, translate=0.1, scale=(0.8, 1.25), shear=0.0)
    matrices = np.asarray(augment.random_affine(jax.random.key(0), (400, 100, 60), options))
    identity = np.isclose(matrices, np.eye(2, 3)).all((1, 2))
    assert 150 < identity.sum() < 250
    drawn = matrices[~identity]
    scale = np.sqrt(np.linalg.det(drawn[:, :, :2]))
    angle = np.rad2deg(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert scale.min() > 0.79 and scale.max() < 1.26 and scale.std() > 0.05
    assert np.abs(angle).max() < 20.01 and angle.min() < -15 and angle.max() > 15
    assert np.abs(drawn[:, 0, 2]).max() <= 10 and np.abs(drawn[:, 1, 2]).max() <= 6
