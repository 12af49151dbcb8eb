"""Memory by kind, and what the compiler says when there is too little."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mammoclip_jax.aot import device_memory
from mammoclip_jax.training.mesh import make_mesh


@pytest.mark.parametrize(
    "message,expected",
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 26.5G of 15.75G hbm. Exceeded hbm capacity by 10.7G.",
            (26.5, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.00G) exceeds "
            "available HBM (15.75G).",
            (26.0, 15.75),
        ),
    ],
)
def test_what_is_needed_is_read_from_the_error(message, expected):
    assert device_memory.shortage(message) == tuple(int(size * 2**30) for size in expected)


def test_other_errors_are_no_shortage():
    assert device_memory.shortage("INVALID_ARGUMENT: no such option") is None


def test_bytes_of_a_device_follow_the_sharding():
    mesh = make_mesh({"data": -1})
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tree = {
        "a": jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split),
        "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=whole),
        "key": jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole),
    }
    assert device_memory.shard_bytes(tree) == 2 * 3 * 4 + 5 * 2 + 8
