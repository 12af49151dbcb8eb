"""PyTorch's side and ours, live: from the same weights, without dropout, the same losses step after step.

The second loss depends on the gradient of every parameter and on AdamW, the third on its moments too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.benchmarks import against, programs
from mammoclip_jax.benchmarks.worker import Worker
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights import names
from mammoclip_jax.weights.layouts.parts import write_linear
from mammoclip_jax.weights.naming import write

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SIZE = {"height": 64, "width": 48, "vocab_size": 50}
LENGTHS = (12, 5, 9, 7)
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}  # else threads that wait spin, and others' work stands still


@pytest.fixture
def config(config):
    config.model.image.update(drop_rate=0.0, drop_connect_rate=0.0)
    config.model.text.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.train.lr = 1e-3
    return config


def carried(variables, config, path, work):
    """Our fresh variables in PyTorch's names, as a file; one tower's alone where the work is that."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    if work == "text_tower":
        np.savez(path, **of_text(params, config))
        return str(path)
    if work == "image_tower":
        params, stats = {"image_encoder": params}, {"image_encoder": stats}
    image = {"params": params["image_encoder"], "batch_stats": stats["image_encoder"]}
    image = write(names.naming("efficientnet/lukemelas"), image, config.model.image.to_dict())
    state = {f"image_encoder.{key}": value for key, value in image.items()}
    if "text_encoder" in params:
        state |= of_text(params["text_encoder"], config)
        for name in ("image_projection", "text_projection"):
            state |= write_linear(f"{name}.projection.", params[name]["dense"])
        state["logit_scale"] = np.asarray(params["logit_scale"])
    np.savez(path, **{key: np.asarray(x) for key, x in state.items() if not key.endswith("num_batches_tracked")})
    return str(path)


def of_text(params, config):
    text = write(names.naming("bert"), {"params": params}, config.model.text.to_dict())
    return {f"text_encoder.text_encoder.{key}": np.asarray(x) for key, x in text.items() if "pooler" not in key}


def fresh(config, work):
    """The variables that our worker begins with."""
    if work == "text_tower":
        encoder = models.text_encoder(config.model.text.to_dict(), SIZE["vocab_size"])
        return encoder.init(jax.random.key(config.seed), *jnp.ones((2, 1, max(LENGTHS)), int), train=False)
    if work == "image_tower":
        encoder = models.image_encoder(config.model.image.to_dict())
        return encoder.init(jax.random.key(config.seed), jnp.zeros((1, 64, 48, 3)), train=False)
    preprocessing = {"height": SIZE["height"], "width": SIZE["width"], "bits": 8}
    state = make_trainer(config, SIZE["vocab_size"], preprocessing, make_mesh({}, jax.devices()[:1])).init()
    return {"params": state.params, "batch_stats": state.batch_stats}


def test_a_network_without_padding_modules_is_the_same():
    """Folded pads change the program and no number; stride 1 has no padding module left."""
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("mammoclip_jax.benchmarks.torch_peer")
    torch.manual_seed(0)
    network = peer.ImageEncoder.from_name("efficientnet-b0", include_top=False, depth_coefficient=0.3)
    images, found = torch.rand(2, 3, 48, 40), []
    for fold in (False, True):
        if fold:
            peer.fold_pads(network)
        torch.manual_seed(1)  # of drop-connect and dropout
        network.zero_grad()
        pooled = network(images)
        pooled.square().mean().backward()
        found.append([pooled, *(parameter.grad.clone() for parameter in network.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*found, strict=True))
    convolutions = [block._depthwise_conv for block in network._blocks]
    left = {c.stride[0] for c in convolutions if not isinstance(c.static_padding, torch.nn.Identity)}
    assert left == {2} and any(c.padding == (2, 2) for c in convolutions)


# The peers' image tower is the same in both; bf16 rounds, and is only near.
@pytest.mark.parametrize(
    "work, settings",
    [
        ("image_tower", [("tuned", True), ("folded", False), ("bf16", False)]),
        ("text_tower", [("tuned", False)]),
        ("pretrain", [("reference", False), ("tuned", False), ("tuned", True)]),
    ],
)
def test_losses_agree_step_after_step(config, work, settings, tmp_path):
    pytest.importorskip("efficientnet_pytorch")
    ours = against.specification(config, work, images=4, lengths=LENGTHS, folder=tmp_path, devices=1, **SIZE)
    about, step = programs.make(ours)
    found = [step()["loss"] for _ in range(3)]
    assert abs(found[0] - found[2]) > 0.01 * found[0]  # it did learn
    files = {"inputs": ours["inputs"], "weights": carried(fresh(config, work), config, tmp_path / "weights.npz", work)}
    for setting, checkpoint in settings:
        peer = against.peer_specification(config, work, setting=setting, vocab_size=50, checkpoint=checkpoint)
        with Worker(against.PEER, peer | files, PASSIVE) as worker:
            assert worker.about["parameters"] == about["parameters"]
            for _ in range(3):
                worker.step()
            theirs = [figures["loss"] for figures in worker.figures]
        assert theirs == pytest.approx(found, rel=0, abs=(5e-2 if setting == "bf16" else 2e-4) * found[0]), setting
