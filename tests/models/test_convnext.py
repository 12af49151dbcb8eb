"""What is ConvNeXt's own; the rest is in test_image_encoders.py."""

import jax
import jax.numpy as jnp
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.convnext import ConvNext


def test_an_image_smaller_than_a_cell_is_refused():
    with pytest.raises(UserError, match="32 x 32"):
        jax.eval_shape(ConvNext().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 31, 3), jnp.float32))
