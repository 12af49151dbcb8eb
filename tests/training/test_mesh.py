"""Where the state lies: rules, ZeRO-1 and FSDP; images whose rows are split over devices."""

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import slash_name


def tiny_config(**image):
    config = defaults()
    config.model.image.update(image or dict(name="vit", variant="tiny", width=16, depth=2, heads=2))
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
    config.image.channels = 1
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=1, batch_size=8, ema_decay=0.9)
    config.data.text_length = tiny.LENGTH
    config.sharding.min_size = 64
    return config


def trainer_of(config, mesh, height=tiny.HEIGHT):
    return make_trainer(config, tiny.VOCABULARY, {"height": height, "width": tiny.WIDTH, "bits": 8}, mesh)


def test_a_batch_is_split_over_all_axes():
    """The partitioner multiplies a depthwise kernel's gradient by the size of each axis that its batch is replicated over."""
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "space": 2})
    x = jax.device_put(np.arange(16), meshes.batch_sharding(mesh))
    assert sorted(shard.data.tolist() for shard in x.addressable_shards) == [[i, i + 1] for i in range(0, 16, 2)]


def split(tree):
    """Paths of the arrays that no device holds whole."""
    return {
        slash_name(path) for path, x in jax.tree_util.tree_leaves_with_path(tree) if not x.sharding.is_fully_replicated
    }


def two_steps(kind, sizes, devices):
    """The state, of `kind`, after two steps, and the loss."""
    config, mesh = tiny_config(), meshes.make_mesh(sizes, devices)
    config.sharding.state = kind
    trainer = trainer_of(config, mesh)
    state, batch = trainer.init(), meshes.put_batch(tiny.batch(), mesh)
    step = trainer.jitted()
    with jax.set_mesh(mesh):
        for _ in range(2):
            state, metrics = step(state, batch)
    return state, float(metrics["loss"])


@pytest.fixture(scope="module")
def alone():
    """On one device, where there is nothing to split."""
    return two_steps("replicated", {}, jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", meshes.STATES)
def test_a_split_state_takes_the_same_steps(alone, kind):
    """Two steps, on eight devices with the state of `kind` and on one."""
    (one, loss), (eight, loss8) = alone, two_steps(kind, {"data": 2, "fsdp": 4}, jax.devices())
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    assert split(eight.params) == (split(eight.ema["params"]) if kind == "fsdp" else set())
    moments = split(eight.opt_state)
    assert bool(moments) == (kind != "replicated") and bool(split(eight.ema)) == (kind != "replicated")
    if kind == "fsdp":
        assert all(
            any(path.endswith(f"/{kept}/{name}") for path in moments)
            for name in split(eight.params)
            for kept in ("mu", "nu")
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one.params), jax.tree.leaves(eight.params)):
        if "key/bias" not in slash_name(path):  # its gradient is zero but for rounding, which Adam makes large
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=3e-5, err_msg=slash_name(path))


def test_the_largest_dimension_that_divides_is_split():
    trainer = trainer_of(tiny_config(), meshes.make_mesh({"data": 2, "fsdp": 4}))
    assert not split(trainer.state)
    config = tiny_config()
    config.sharding.state = "fsdp"
    params = trainer_of(config, meshes.make_mesh({"data": 2, "fsdp": 4})).state.params
    embedding = params["text_encoder"]["embeddings"]["word_embeddings"]["embedding"]
    assert embedding.shape == (40, 16) and embedding.sharding.spec == PartitionSpec("fsdp")
    assert params["image_projection"]["dense"]["bias"].sharding.is_fully_replicated  # small


def test_rules_win_over_the_rest_and_are_checked():
    config = tiny_config()
    config.sharding.rules = ((r"text_encoder/.*word_embeddings", (None, "fsdp")), (r"text_encoder/", ()))
    mesh = meshes.make_mesh({"data": 2, "fsdp": 4})
    state = trainer_of(config, mesh).state
    assert split(state.params) == {"text_encoder/embeddings/word_embeddings/embedding"}
    assert len(split(state.opt_state)) == 2
    for rules, message in (
        (((r"txt_encoder", ()),), "no parameter path matches 'txt_encoder'"),
        (((r"logit_scale", ("fsdp",)),), "does not split logit_scale of shape"),
        (((r"text_encoder/.*word", ("fsdp", "fsdp")),), "does not split text_encoder/"),
    ):
        config.sharding.rules = rules
        with pytest.raises(UserError, match=message):
            trainer_of(config, mesh)
    config.sharding.update(rules=(), state="zero3")
    with pytest.raises(UserError, match="zero3"):
        trainer_of(config, mesh)


def rows_config(depthwise="native"):
    return tiny_config(
        name="efficientnet",
        variant="b0",
        width=0.25,
        depth=0.3,
        depthwise=depthwise,
        drop_connect_rate=0.0,
        drop_rate=0.0,
    )


def test_rows_of_every_map_must_split_evenly():
    """Else the partitioner of jax gives wrong gradients: native depthwise kernels, 152 rows over four devices."""
    config = rows_config()
    config.model.image.rows = "space"
    with pytest.raises(UserError, match="152 rows, .* 4 devices of config.mesh.space: .* a multiple of 128 rows"):
        trainer_of(config, meshes.make_mesh({"data": 2, "space": 4}), height=152)
    config.model.image.rows = "rows"
    with pytest.raises(UserError, match="no axis of the mesh"):
        trainer_of(config, meshes.make_mesh({"data": 2, "space": 4}), height=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    "height, sizes, depthwise",
    [
        (128, {"data": 2, "space": 4}, "native"),
        (64, {"data": 4, "space": 2}, "native"),
        (128, {"data": 2, "space": 4}, "shifted"),
    ],
)
def test_images_split_by_rows_give_every_gradient(height, sizes, depthwise):
    """128 rows over four devices: one row a device of the smallest map."""
    config, found = rows_config(depthwise), []
    for devices, mesh_sizes, rows in ((jax.devices()[:1], {}, None), (jax.devices(), sizes, "space")):
        mesh = meshes.make_mesh(mesh_sizes, devices)
        config.model.image.rows = rows
        trainer = trainer_of(config, mesh, height)
        batch = meshes.put_batch(tiny.batch(height=height), mesh, rows)
        with jax.set_mesh(mesh):
            loss, _, _, gradients = jax.jit(trainer.gradient)(trainer.init(), batch)
        found.append((float(loss), jax.device_get(gradients)))
    assert batch["image"].sharding.shard_shape(batch["image"].shape)[2] == height // sizes["space"]
    (loss, one), (loss8, eight) = found
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(one))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight)):
        if np.linalg.norm(a) > 1e-5 * largest:
            assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(a), slash_name(path)
