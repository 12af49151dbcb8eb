"""A loss compiled alone: what goes around the ring, and what is refused."""

import jax
import pytest

from mammoclip_jax.aot import loss, topology
from mammoclip_jax.errors import UserError

TARGET = topology.Topology("cpu:1", jax.devices(), 2**30, refuses=False)


@pytest.mark.parametrize("name", loss.LOSSES)
def test_keys_go_around_once_and_back_with_their_gradients(name):
    found = loss.compile_loss(name, 256, 32, "ring", TARGET)
    chips = len(TARGET.devices)
    assert found["chips"] == chips and found["form"] == "ring" and found["fits"] and not found["unknown_loops"]
    assert found["vectors_bytes"] == 2 * 4 * 256 * 32 // chips
    sent = found["collectives"]["collective-permute"]["bytes"]
    assert 1 <= sent / (3 * 4 * 256 * 32) < 1.6  # forward; backward with gradients; what is known of rows and columns
    products = 2 * 256 * 256 * 32 / chips
    assert found["counted_flops"] >= 4 * products  # forward, again, and both gradients
    assert f"{chips} x cpu" in loss.text(found) and "collective-permute" in loss.text(found)


def test_a_loss_that_does_not_fit_says_so_and_uneven_rows_are_refused():
    small = TARGET._replace(hbm=1000)
    assert "DOES NOT FIT" in loss.text(loss.compile_loss("clip", 64, 8, "auto", small))
    with pytest.raises(UserError, match="65 do not split evenly over the 8 chips"):
        loss.compile_loss("clip", 65, 8, "auto", TARGET)
