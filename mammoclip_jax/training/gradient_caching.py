"""The two towers over a global batch that no device holds at once: gradient caching (Gao et al. 2021, arXiv:2101.06983).

A tower's rows go through it in micro-batches. Nothing but the vectors is kept of the forward pass, the loss sees all of
them, and the backward pass computes each micro-batch again, with the same dropout, for its share of the gradient. The
gradient is that of one pass over the same micro-batches; batch statistics are those of a micro-batch, and their running
averages go from one to the next, once.
"""

import functools

import jax
import jax.numpy as jnp

from mammoclip_jax.types import Embeddings


def embed(model, variables, batch, augment, draws, key, micro_batches) -> tuple[Embeddings, dict]:
    """`Embeddings` of a training batch, and the new batch statistics.

    Args:
        model: a `DualEncoder`, or one with adapters.
        variables: params and batch_stats.
        augment: `(image [N H W], draws) -> [N H W C]`, the encoder's input.
        draws: what varies the images, a tree of [B*V ...].
        key: PRNG key of the dropout.
        micro_batches: {"image", "text"}: the number of parts that the images and the texts are encoded in. With more
            than one, stage maps and token states are not kept.
    """
    params = variables["params"]
    image_key, text_key = jax.random.split(key)
    breasts, views = batch["image"].shape[:2]

    def apply(stats, key, *inputs, method):
        (vectors, details), updated = model.apply(
            {"params": params, "batch_stats": stats}, *inputs, train=True, rngs={"dropout": key},
            mutable=["batch_stats"], method=method)
        return vectors, details, updated.get("batch_stats", stats)

    def encode_image(stats, inputs, key):
        image, drawn = inputs
        return apply(stats, key, augment(image, drawn), method="encode_image")

    def encode_text(stats, inputs, key):
        return apply(stats, key, *inputs, method="encode_text")

    def project_text(stats, features, key):
        vectors = model.apply({"params": params, "batch_stats": stats}, features, train=True, rngs={"dropout": key},
                              method="project_text")
        return vectors, None, stats

    stats = variables["batch_stats"]
    images = _flat(batch["image"]), draws
    image, stages, stats = _in_parts(encode_image, stats, images, image_key, micro_batches["image"])
    if "text_features" in batch:    # of a frozen tower, encoded once (cached_text.py)
        text, states, stats = project_text(stats, _flat(batch["text_features"]), text_key)
    else:
        texts = _flat(batch["token_ids"]), _flat(batch["token_mask"])
        text, states, stats = _in_parts(encode_text, stats, texts, text_key, micro_batches["text"])
    return Embeddings(
        image=image.reshape(breasts, views, -1),
        text=text.reshape(breasts, -1, text.shape[-1]),
        logit_scale=jnp.exp(params["logit_scale"]),
        image_stages=stages if stages is not None else {},
        text_states=states,
        logit_bias=params.get("logit_bias"),
    ), stats


def _in_parts(encode, stats, inputs, key, parts: int):
    """`encode(stats, inputs, key) -> (vectors, details, stats)` of all rows; details are None where there are parts."""
    if parts == 1:
        return encode(stats, inputs, key)

    @functools.partial(jax.checkpoint, prevent_cse=False)     # a loop's passes are not merged
    def vectors_of(stats, part, key):
        vectors, _, stats = encode(stats, part, key)
        return stats, vectors

    def body(stats, item):
        return vectors_of(stats, *item)

    # Row i goes to part i % parts: a batch that is sharded by its rows keeps every part spread over all devices.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), inputs)
    stats, vectors = jax.lax.scan(body, stats, (split, jax.random.split(key, parts)))
    return vectors.swapaxes(0, 1).reshape(-1, vectors.shape[-1]), None, stats


def _flat(x):
    """[B V ...] as [B*V ...]."""
    return x.reshape(-1, *x.shape[2:])
