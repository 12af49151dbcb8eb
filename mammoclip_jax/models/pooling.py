"""From token states to one vector a text.

`pool` is the one way of every text encoder. Padding of any amount, on either side, changes nothing.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup


def pool(
    states: Float[Array, "N L C"], ids: Int[Array, "N L"], mask: Bool[Array, "N L"], how: str, token: int | None = None
) -> Float[Array, "N C"]:
    """One vector a text, by the pooling of that name.

    "eos": the state of the last real token ([SEP] of BERT, as Mammo-CLIP; the last token of GPT-2). "bos": of the
    first one ([CLS]). "mean": the mean of the real ones, in float32. "eot": CLIP's end-of-text token, by one of
    transformers' two rules: where `token` is given its first appearance (the last real token of a text without it;
    transformers would take the first token, which has seen nothing of the text), else the first of the greatest id
    (OpenAI's rule; wrong once tokens are added behind the end-of-text token). "sep": the mean of the states at every
    `token`, one a sentence (MaMA); of a text without it, its last real token.

    MaMA's code trains with a mean that counts padding and tests with the first padding token
    (encoder_pemed.py:395-413); neither is offered. A text of padding alone gives a finite vector.

    Raises:
        UserError: there is no such pooling, or "sep" is not told its token.
    """
    return lookup(POOLINGS, how, "text pooling")(states, ids, mask, token)


def _eos(states, ids, mask, token):
    return _at(states, _last(mask)[:, None])[:, 0]


def _bos(states, ids, mask, token):
    return _at(states, jnp.argmax(mask, axis=1)[:, None])[:, 0]


def _mean(states, ids, mask, token):
    return _masked_mean(states, mask)


def _eot(states, ids, mask, token):
    if token is None:
        where = jnp.argmax(jnp.where(mask, ids, -1), axis=1)
    else:
        hits = (ids == token) & mask
        where = jnp.where(hits.any(axis=1), jnp.argmax(hits, axis=1), _last(mask))
    return _at(states, where[:, None])[:, 0]


def _sep(states, ids, mask, token):
    if token is None:
        raise UserError('the pooling "sep" needs config.model.pooling_token, the id of the separator in the tokenizer.')
    hits = (ids == token) & mask
    last = jnp.arange(ids.shape[1]) == _last(mask)[:, None]
    return _masked_mean(states, jnp.where(hits.any(axis=1, keepdims=True), hits, last))


POOLINGS = {"eos": _eos, "bos": _bos, "mean": _mean, "eot": _eot, "sep": _sep}


def _masked_mean(states, mask):
    weight = mask[..., None].astype(jnp.float32)
    return ((states * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)).astype(states.dtype)


def _last(mask):
    """Place of the last real token; the last place of a text of padding alone."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def _at(states, where):
    return jnp.take_along_axis(states, where[..., None], axis=1)
