"""The table of parameters: counted by hand for a small model with a frozen tower and adapters."""

import pytest

from mammoclip_jax.aot import parameters
from mammoclip_jax.errors import UserError

CONFIG = """
from mammoclip_jax.config import defaults

def get_config(argument=""):
    config = defaults()
    config.name = "tiny " + argument
    config.data.folders.films = "films"
    config.data.text_length = 12
    config.losses.clip = dict(weight=1.0)
    config.train.batch_size = 4
    config.model.dim = 6
    config.model.image = dict(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.text = dict(name="gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=32)
    if argument == "lora":
        config.model.lora = dict(pattern="text_encoder/.*/c_attn/kernel", rank=3, alpha=6.0)
    return config
"""
BLOCK = 2 * 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
TEXT = 50 * 16 + 32 * 16 + 2 * BLOCK + 2 * 16  # tokens, positions, blocks, last norm
PRODUCTS = (
    2 * 12 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 2 * 2 * 12 * 12 * 16
)  # of a block: kernels, then scores and mixing


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_counts_are_those_by_hand(path):
    whole, adapted = (parameters.sizes(f"{path}{argument}=64x32", 50) for argument in ("", ":lora"))
    assert whole["text encoder M"] == pytest.approx(TEXT / 1e6, abs=0)
    assert whole["total M"] == whole["trained M"]
    assert adapted["config"] == "tiny lora" and adapted["image"] == "64 x 32"
    adapters = 2 * (16 * 3 + 3 * 48)
    assert adapted["total M"] * 1e6 == pytest.approx(whole["total M"] * 1e6 + adapters)
    assert adapted["trained M"] * 1e6 == pytest.approx((whole["total M"] - whole["text encoder M"]) * 1e6 + adapters)
    assert whole["GFLOP a text"] * 1e9 == pytest.approx(2 * PRODUCTS + 2 * 16 * 6)
    header, _, row, _ = parameters.markdown([whole, adapted]).splitlines()
    assert header.count("|") == row.count("|") == 9


@pytest.mark.parametrize("item", ["tiny.py", "{path}", "{path}=64", "{path}:lora", "no.py=64x64"])
def test_what_is_written_otherwise_is_refused(path, item):
    with pytest.raises(UserError, match="CONFIG=HEIGHTxWIDTH"):
        parameters.sizes(item.format(path=path), 50)
