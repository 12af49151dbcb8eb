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


def carried(variables, config, path):
    """Our fresh variables in PyTorch's names, as a file; an image encoder's alone where there is no text encoder."""
    params, stats = variables["params"], variables["batch_stats"]
    if "image_encoder" not in params:
        params, stats = {"image_encoder": params}, {"image_encoder": stats}
    image = {"params": params["image_encoder"], "batch_stats": stats["image_encoder"]}
    image = write(names.naming("efficientnet/lukemelas"), image, config.model.image.to_dict())
    state = {f"image_encoder.{key}": value for key, value in image.items()}
    if "text_encoder" in params:
        text = write(names.naming("bert"), {"params": params["text_encoder"]}, config.model.text.to_dict())
        state |= {f"text_encoder.text_encoder.{key}": value for key, value in text.items() if "pooler" not in key}
        for name in ("image_projection", "text_projection"):
            state |= write_linear(f"{name}.projection.", params[name]["dense"])
        state["logit_scale"] = np.asarray(params["logit_scale"])
    np.savez(path, **{key: np.asarray(x) for key, x in state.items() if not key.endswith("num_batches_tracked")})
    return str(path)


def fresh(config, work):
    """The variables that our worker begins with."""
    if work == "image_tower":
        encoder = models.image_encoder(config.model.image.to_dict())
        return encoder.init(jax.random.key(config.seed), jnp.zeros((1, 64, 48, 3)), train=False)
    preprocessing = {"height": SIZE["height"], "width": SIZE["width"], "bits": 8}
    state = make_trainer(config, SIZE["vocab_size"], preprocessing, make_mesh({}, jax.devices()[:1])).init()
    return {"params": state.params, "batch_stats": state.batch_stats}


# The peers' image tower is the same in both.
@pytest.mark.parametrize(
    "work, settings",
    [("image_tower", [("tuned", True)]), ("pretrain", [("reference", False), ("tuned", False), ("tuned", True)])],
)
def test_losses_agree_step_after_step(config, work, settings, tmp_path):
    pytest.importorskip("efficientnet_pytorch")
    ours = against.specification(config, work, images=4, lengths=LENGTHS, folder=tmp_path, devices=1, **SIZE)
    about, step = programs.make(ours)
    found = [step()["loss"] for _ in range(3)]
    assert abs(found[0] - found[2]) > 0.02 * found[0]  # it did learn
    files = {"inputs": ours["inputs"], "weights": carried(fresh(config, work), config, tmp_path / "weights.npz")}
    for setting, checkpoint in settings:
        peer = against.peer_specification(config, work, setting=setting, vocab_size=50, checkpoint=checkpoint)
        with Worker(against.PEER, peer | files, PASSIVE) as worker:
            assert worker.about["parameters"] == about["parameters"]
            for _ in range(3):
                worker.step()
            theirs = [figures["loss"] for figures in worker.figures]
        assert theirs == pytest.approx(found, rel=0, abs=2e-4 * found[0]), setting
