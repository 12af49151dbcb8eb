"""What is Swin's own: windows, maps that they do not fill; the rest is in test_image_encoders.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_images
from comparison import close
from image_contract import FORMS, image, run

from mammoclip_jax.models.swin import Block, from_windows, position_index, regions, to_windows

SMALL = FORMS["swin"]


@pytest.mark.parity
@pytest.mark.parametrize("size", [(2, 64, 48, 3), (1, 9, 130, 3), (1, 3, 2, 3)], ids=str)
def test_maps_smaller_than_a_window(size):
    """transformers fails on them, as its bias fits whole windows alone, unless it always fills the windows.

    It then shifts them as well; that is switched off here, as it does itself for maps of one window.
    """
    torch = pytest.importorskip("torch")
    model, variables, x = SMALL.model(), SMALL.variables(), image(size)
    theirs, again = (SMALL.theirs.model(model, variables) for _ in range(2))
    with pytest.raises(RuntimeError, match="size|shape"):
        SMALL.theirs.run(again, x)
    for i, stage in enumerate(theirs.encoder.layers):
        if min(-(-length // (4 * 2**i)) for length in size[1:3]) <= 7:
            for block in stage.blocks:
                block.shift_size = 0
    expected = torch_images.swin_outputs(theirs, torch.tensor(x.transpose(0, 3, 1, 2)), always_partition=True)
    ours, _ = run(model, variables, x)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        close(ours[name], value.detach().numpy())


@pytest.mark.parity
@pytest.mark.parametrize(
    "variant, parameters", [("tiny", 27_519_354), ("small", 48_837_258), ("base", 86_743_224), ("large", 194_995_476)]
)
def test_parameters_of_the_originals(variant, parameters):
    """What test_image_encoders.py counts of ours is as many in timm; test_names_swin.py has transformers' shapes."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(f"swin_{variant}_patch4_window7_224", num_classes=0)
    assert sum(p.numel() for p in theirs.parameters()) == parameters


def test_stage_grids_say_where_a_cell_looks():
    """Without attention, a change in row p reaches the cells that hold it: the mean of a cell's rows is its centre."""
    model = SMALL.model()
    variables = jax.tree_util.tree_map_with_path(
        lambda path, value: value * ("attention" not in str(path)), SMALL.variables(channels=1)
    )
    x = np.zeros((129, 128, 40, 1), np.float32) + image((1, 128, 40, 1))
    x[np.arange(128), np.arange(128)] += 1
    stages, _ = run(model, variables, x)
    for name, i in (("stem", 6), ("stage1", 9), ("stage2", 7)):
        stride, centre = model.stage_grids(128, 40)[name]
        rows = np.flatnonzero((stages[name][:-1, i] != stages[name][-1, i]).any((1, 2)))
        assert len(rows) == stride and rows.mean() + 0.5 == stride * i + centre[0]


def test_any_size():
    outputs, _ = run(SMALL.model(), SMALL.variables(channels=1), image((2, 33, 1, 1)))
    assert outputs["pooled"].shape == (2, 16) and np.isfinite(outputs["pooled"]).all()
    assert outputs["stage1"].shape == (2, 9, 1, 8) and outputs["stage2"].shape == (2, 5, 1, 16)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_by_hand():
    x = jnp.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (2, 6, 4, 1) and windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert np.array_equal(from_windows(windows, 2, 4, 6), x)
    # A window of 2 x 2 has 9 relative positions: of each with itself the middle one; up, left are the first.
    assert position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    # Rolled by one, the last row and column are the former first ones: only the last windows have several regions.
    assert regions(4, 4, 2, 1).tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 2, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    "shifted, width, seen",
    [(False, 12, range(4, 8)), (True, 12, range(2, 6)), (True, 4, range(0, 4)), (True, 3, range(0, 3))],
)
def test_a_token_sees_its_window(shifted, width, seen):
    """Columns of a map, with windows of 4 x 4, that reach the token in column 5 (or the last), by its gradient."""
    block = Block(1, 4, shifted, 0.0, 1e-5, jnp.float32)
    x = jnp.asarray(image((1, 12, width, 4)))
    params = jax.jit(block.init, static_argnums=2)(jax.random.key(0), x, False)
    slope = jax.jit(jax.grad(lambda x: block.apply(params, x, False)[0, 5, min(5, width - 1)].sum()))(x)
    assert np.flatnonzero(np.abs(slope[0]).max((0, 2)) > 1e-7).tolist() == list(seen)


def test_attention_and_mlp_are_dropped_apart():
    """Of 64 samples, some are left as they were, and the others are one of three things."""
    block = Block(1, 2, False, 0.5, 1e-5, jnp.float32)
    x = jnp.broadcast_to(image((1, 4, 4, 4)), (64, 4, 4, 4))
    params = jax.jit(block.init, static_argnums=2)(jax.random.key(0), x, False)
    y = np.asarray(jax.jit(lambda key: block.apply(params, x, True, rngs={"dropout": key}))(jax.random.key(1)))
    assert len(np.unique(y.reshape(64, -1).round(4), axis=0)) == 4 and (y == x).all((1, 2, 3)).any()
