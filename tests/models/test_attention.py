"""Whatever the products are in, the softmax of every encoder with attention is in float32."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from mammoclip_jax import models

IMAGE = {
    "dinov2": dict(variant="small", width=8, depth=1, heads=2, size=28),
    "swin": dict(width=8, depths=(2,), heads=(2,), window=2),
    "vit": dict(variant="tiny", width=8, depth=1, heads=2),
}
TEXT = {
    "bert": dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
    "clip_text": dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
    "gpt2": dict(n_embd=8, n_layer=1, n_head=2),
    "modernbert": dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, global_attn_every_n_layers=2
    ),
}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("name", sorted(IMAGE | TEXT))
def test_softmax_is_in_float32(name):
    if name in IMAGE:
        model = models.image_encoder({"name": name} | IMAGE[name], jnp.bfloat16)
        inputs = (jnp.zeros((1, 32, 32, 1), jnp.bfloat16),)
    else:
        model = models.text_encoder({"name": name} | TEXT[name], 10, jnp.bfloat16)
        inputs = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    program = jax.make_jaxpr(lambda variables: model.apply(variables, *inputs, train=False))(variables)
    dtypes = [
        equation.outvars[0].aval.dtype for equation in equations(program.jaxpr) if equation.primitive.name == "exp"
    ]
    assert dtypes and set(dtypes) == {jnp.dtype("float32")}
