"""A checkpoint of the published size and key layout, made by PyTorch alone, converts in one command and agrees.

EfficientNet-B5 of efficientnet_pytorch beside transformers' BERT-base, random weights, with the optimiser's state and a
config around them, as Mammo-CLIP's trainer saves it (its pretraining loop's `torch.save`). Two images at 1520 x 912,
three texts; embeddings have length one, so 1e-4 is absolute.
"""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights.opening import open_weights

pytestmark = [pytest.mark.parity, pytest.mark.slow]
MEAN, STD = 0.3089279, 0.25053555408335154
HEIGHT, WIDTH, VOCABULARY = 1520, 912, 28996
LENGTHS = (256, 40, 5)


def pictures():
    """uint8 [2, 1520, 912]: waves and noise, the second image darker and coarser."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 60, (2, HEIGHT, WIDTH))
    fine = 90 + 60 * np.sin(rows / 40) * np.cos(columns / 25)
    coarse = 40 + 35 * np.sin(rows / 90 + columns / 130)
    return (np.stack([fine, coarse]) + noise).astype(np.uint8)


def original(pixels):
    """{module name of the published layout: torch module}.

    The running statistics are those of the images' upper left: with others, activations grow from block to block until
    rounding decides them.
    """
    import torch
    from efficientnet_pytorch import EfficientNet
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    image = EfficientNet.from_name("efficientnet-b5", drop_connect_rate=0.0)
    norms = [module for module in image.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.8, 1.2)
        norm.bias.data.normal_(0, 0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        image.train().extract_features(pixels[:, :, :304, :184])
    image._fc = torch.nn.Identity()
    text = BertModel(BertConfig(vocab_size=VOCABULARY))
    return {
        "image_encoder": image.eval(),
        "text_encoder.text_encoder": text.eval(),
        "image_projection.projection": torch.nn.Linear(2048, 512),
        "text_projection.projection": torch.nn.Linear(768, 512),
    }


def save(modules, path):
    """The file of the published trainer: model, optimizer, scheduler, config, epoch, train_loss."""
    import torch

    state = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    state["logit_scale"] = torch.tensor(math.log(1 / 0.07) + 0.3)
    moments = {
        i: {"step": torch.tensor(7.0), "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for i, value in enumerate(state.values())
    }
    config = {"base": {"mean": MEAN, "std": STD}, "model": {"text_encoder": {"pooling": "eos"}}}
    torch.save(
        {
            "model": state,
            "optimizer": {"state": moments, "param_groups": []},
            "scheduler": {"last_epoch": 3},
            "config": config,
            "epoch": 7,
            "train_loss": 1.5,
        },
        path,
    )
    return state


def normalised(images):
    """As the original's loader: min-max of each image, mean and deviation, three equal channels."""
    import torch

    low, high = (reduce(images, axis=(1, 2), keepdims=True).astype(np.float32) for reduce in (np.min, np.max))
    return torch.tensor(((images - low) / (high - low) - MEAN) / STD, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)


def embeddings(modules, pixels, ids, mask):
    """Of the original's forward pass: the mean of the head map, the last real token of each text."""
    import torch

    def unit(module, x):
        x = module(x)
        return (x / x.norm(dim=1, keepdim=True)).numpy()

    with torch.no_grad():
        features = modules["image_encoder"].extract_features(pixels).mean((2, 3))
        states = modules["text_encoder.text_encoder"](torch.tensor(ids), torch.tensor(mask).long()).last_hidden_state
        last = states[torch.arange(len(ids)), torch.tensor(mask.sum(axis=1) - 1)]
        return (
            unit(modules["image_projection.projection"], features),
            unit(modules["text_projection.projection"], last),
        )


def test_converts_in_one_command_and_agrees(tmp_path):
    pytest.importorskip("torch")
    images = pictures()
    pixels = normalised(images)
    modules = original(pixels)
    state = save(modules, tmp_path / "b5-model-best-epoch-7.tar")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mammoclip_jax.weights",
            "import",
            tmp_path / "b5-model-best-epoch-7.tar",
            f"--out={tmp_path}/b5",
            "--licence=mammo_clip",
            f"--json={tmp_path}/figures.json",
        ],
        check=True,
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["layout"] == "mammo_clip" and figures["missing"] == []
    assert {key for key in figures["unused"] if not key.endswith("num_batches_tracked")} == {
        f"text_encoder.text_encoder.pooler.dense.{kind}" for kind in ("weight", "bias")
    }
    assert figures["parameters"]["image_encoder"] == 28_340_784

    ids = np.random.default_rng(1).integers(0, VOCABULARY, (len(LENGTHS), 256))
    mask = np.arange(256) < np.array(LENGTHS)[:, None]
    theirs_image, theirs_text = embeddings(modules, pixels, ids, mask)
    variables, meta = open_weights(tmp_path / "b5")
    model = DualEncoder(variables, meta, meta["step"], batch_size=2, mesh=make_mesh({}, jax.devices()[:1]))
    ours_image, ours_text = model.embed_image(images), model.embed_tokens(ids, mask)
    assert abs(theirs_image[0] - theirs_image[1]).max() > 1e-2 and abs(theirs_text[0] - theirs_text[1]).max() > 1e-2
    assert abs(ours_image - theirs_image).max() < 1e-4 and abs(ours_text - theirs_text).max() < 1e-4
    assert variables["params"]["logit_scale"] == state["logit_scale"].numpy() and meta["step"] == 7
