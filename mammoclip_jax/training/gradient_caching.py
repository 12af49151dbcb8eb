"""The two towers over a global batch that no device holds at once: gradient caching (Gao et al. 2021, arXiv:2101.06983).

A tower's rows go through it in micro-batches. Nothing but the vectors is kept of the forward pass, the loss sees all of
them, and the backward pass computes each micro-batch again, with the same dropout, for its share of the gradient. The
gradient is that of one pass over the same micro-batches; batch statistics are those of a micro-batch, and their running
averages go from one to the next, once.

Heads (config.model.heads) come behind: they see the outputs of the towers for the whole batch, whatever the micro-batches.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mammoclip_jax.names import check_name
from mammoclip_jax.training.augment import lit
from mammoclip_jax.types import Embeddings


class Concepts(NamedTuple):
    """Texts whose vectors are wanted at every step, the same ones: M of C concepts."""

    ids: Int[Any, "M L"]
    mask: Bool[Any, "M L"]
    share: Float[Any, "C M"]  # of each text in the mean that is its concept's vector


def embed(
    model,
    variables,
    batch,
    augment,
    draws,
    key,
    micro_batches,
    needs=(),
    heads: Mapping[str, int] = {},
    step=0,
    concepts: Concepts | None = None,
) -> tuple[Embeddings, dict]:
    """`Embeddings` of a training batch, and the new batch statistics.

    Args:
        model: a `DualEncoder`, or one with adapters.
        variables: params and batch_stats.
        augment: `(image [N H W], draws) -> [N H W C]`, the encoder's input.
        draws: what varies the images, a tree of [B*V ...].
        key: PRNG key of the dropout.
        micro_batches: {"image", "text"}: the number of parts that the images and the texts are encoded in.
        needs: names for `Embeddings.named`; they go through micro-batches as the vectors do, and are kept whole.
        heads: name of each head that is to run, with the first step at which it does; before, its part of
            `Embeddings.named` is zero, and neither a gradient nor a batch reaches it.
        step: the number of this step.
        concepts: of `concept/vectors` [C D] in `Embeddings.named`: the mean of the unit vectors of each one's texts.

    The phrases of a batch go through the text tower too: `phrase/vectors` [B P D].

    Raises:
        UserError: the model does not give what is needed.
    """
    params = variables["params"]
    towers = dict.fromkeys((*needs, *(name for head in heads for name in model.heads.needs(head))))
    image_key, text_key = jax.random.split(key)

    def apply(stats, key, *inputs, method):
        outputs, updated = model.apply(
            {"params": params, "batch_stats": stats},
            *inputs,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            method=method,
        )
        return outputs, updated.get("batch_stats", stats)

    def encode_image(stats, inputs, key):
        image, drawn = inputs
        image = augment(image, drawn)
        (vectors, outputs), stats = apply(stats, key, image, method="image_outputs")
        if "image/lit" in towers:
            outputs = outputs | {"lit": lit(image)}
        return {"": vectors} | _needed(towers, "image", outputs), stats

    def encode_text(stats, inputs, key):
        (vectors, states), stats = apply(stats, key, *inputs, method="encode_text")
        return {"": vectors} | _needed(towers, "text", {"states": states}), stats

    stats = variables["batch_stats"]
    image, stats = _in_parts(encode_image, stats, (_flat(batch["image"]), draws), image_key, micro_batches["image"])
    if "text_features" in batch:  # of a frozen tower, encoded once (tasks/cached_text.py)
        vectors = model.apply(
            {"params": params, "batch_stats": stats},
            _flat(batch["text_features"]),
            train=True,
            rngs={"dropout": text_key},
            method="project_text",
        )
        text = {"": vectors} | _needed(towers, "text", {})
    else:
        texts = _flat(batch["token_ids"]), _flat(batch["token_mask"])
        text, stats = _in_parts(encode_text, stats, texts, text_key, micro_batches["text"])
    image, text = (
        jax.tree.map(lambda x: x.reshape(len(batch["image"]), -1, *x.shape[1:]), outputs) for outputs in (image, text)
    )
    vectors = image.pop(""), text.pop("")
    named, stats = _with_heads(model, params, stats, image | text, batch, heads, step)
    if "phrase_ids" in batch:
        texts = _flat(batch["phrase_ids"]), _flat(batch["phrase_mask"])
        made, stats = _in_parts(encode_text, stats, texts, jax.random.fold_in(text_key, 2), micro_batches["text"])
        named["phrase/vectors"] = made[""].reshape(*batch["phrase_ids"].shape[:2], -1)
    if concepts:
        texts = jnp.asarray(concepts.ids), jnp.asarray(concepts.mask)
        made, stats = _in_parts(encode_text, stats, texts, jax.random.fold_in(text_key, 1), micro_batches["text"])
        named["concept/vectors"] = jnp.matmul(concepts.share, made[""], precision="highest")
    return Embeddings(*vectors, jnp.exp(params["logit_scale"]), params.get("logit_bias"), named), stats


def _with_heads(model, params, stats, named: Mapping, batch, heads: Mapping[str, int], step) -> tuple[dict, dict]:
    """`named` and what the heads that have started make of it, zeros of the others; and the new batch statistics."""
    rows, views = batch["image"].shape[:2]
    inputs = {"mask": jnp.ones(rows, bool), "view_mask": jnp.ones((rows, views), bool)} | dict(named)
    inputs |= {name: batch[name] for name in ("mask", "view_mask", "token_mask", "sentence", "boxes") if name in batch}
    if "boxes" in batch:
        inputs["regions"] = batch["box_classes"] >= 0
    found = dict(named)
    for name, start in heads.items():

        def run(stats, inputs, name=name):
            made, updated = model.apply(
                {"params": params, "batch_stats": stats},
                name,
                inputs,
                train=True,
                mutable=["batch_stats"],
                method="apply_head",
                size=batch["image"].shape[-2:],
            )
            return made, updated.get("batch_stats", stats)

        if start > 0:
            shapes, _ = jax.eval_shape(run, stats, inputs)
            silent = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            made, stats = jax.lax.cond(
                step >= start, run, lambda stats, _, silent=silent: (silent, stats), stats, inputs
            )
        else:
            made, stats = run(stats, inputs)
        found |= made
    return found, stats


def _needed(needs, tower: str, outputs: Mapping) -> dict:
    """Of what a tower gives beside its vectors, that which is needed, by its name."""
    known = {f"{tower}/{name}": x for name, x in outputs.items()}
    for name in needs:
        if name.startswith(f"{tower}/"):
            check_name(name, known, f"output of the {tower} tower that a loss needs")
    return {name: known[name] for name in needs if name in known}


def _in_parts(encode, stats, inputs, key, parts: int):
    """`encode(stats, inputs, key) -> (tree of [rows ...], stats)` of all rows, in so many parts."""
    if parts == 1:
        return encode(stats, inputs, key)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a loop's passes are not merged
    def body(stats, item):
        outputs, stats = encode(stats, *item)
        return stats, outputs

    # Row i goes to part i % parts: a batch that is sharded by its rows keeps every part spread over all devices.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), inputs)
    stats, outputs = jax.lax.scan(body, stats, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs), stats


def _flat(x):
    """[B V ...] as [B*V ...]."""
    return x.reshape(-1, *x.shape[2:])
