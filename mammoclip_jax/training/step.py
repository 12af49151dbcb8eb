"""One optimisation step, whole, on one screen."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mammoclip_jax.training import augment
from mammoclip_jax.training.optimizer import slash_name
from mammoclip_jax.types import TrainState


def init_variables(model, key, image_shape, text_length):
    """Fresh parameters and batch statistics; `image_shape` is the (H, W, channels) that the image encoder sees."""
    image = jnp.zeros((1, 1, *image_shape), jnp.float32)
    ids = jnp.zeros((1, 1, text_length), jnp.int32)
    return model.init(key, image, ids, jnp.ones_like(ids, bool), train=False)


def init_state(variables, optimizer, key, config) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, average) if config.ema_decay else None,
        key=key,
    )


def make_gradient_fn(loss: Callable, preprocess, frozen=None):
    """`(TrainState, Batch) -> (loss, metrics, batch_stats, gradients)` over the global batch.

    Randomness comes from the state's key and step alone, so a resumed run draws what an uninterrupted one would.

    Args:
        loss: `(variables, batch, draws, dropout key, step) -> (loss, metrics, batch_stats)`, of a task. The batch's
            images are as stored; its boxes and masks lie already where the flips and affine maps of `draws` move them.
        preprocess: see `augment.preprocess_options`; it says what `draws` varies the images by.
        frozen: a tree like the parameters (`optimizer.frozen_parameters`): where it is True no gradient is computed, it
            is zero.
    """

    def gradient_fn(state, batch):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        draws = augment.draw(batch, augment_key, preprocess)
        cropped = {}
        if "boxes" in batch:
            before, batch = batch, augment.with_moved_boxes(batch, draws, preprocess)
            cropped = augment.crop_metrics(before, batch, draws) if preprocess.crops else {}
        if "masks" in batch:
            batch = augment.with_moved_masks(batch, draws, preprocess)

        def loss_fn(params):
            variables = {"params": stopped(params, frozen), "batch_stats": state.batch_stats}
            value, metrics, batch_stats = loss(variables, batch, draws, dropout_key, state.step)
            return value, (metrics, batch_stats)

        (value, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return value, metrics | cropped, batch_stats, gradients

    return gradient_fn


def stopped(params, frozen):
    """`params` without a gradient where `frozen`, a tree like them, is True; None: with one everywhere."""
    if frozen is None:
        return params
    return jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)


def make_train_step(gradient_fn, optimizer, config):
    """`(TrainState, Batch) -> (TrainState, metrics)`, to be jitted with the state donated; `config` is config.train."""

    def step(state, batch):
        loss, metrics, batch_stats, gradients = gradient_fn(state, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = clamp_logit_scale(optax.apply_updates(state.params, updates), config.logit_scale_max)
        ema = state.ema
        if ema is not None:
            # In this form the average of a number that does not change keeps its bits.
            ema = jax.tree.map(
                lambda mean, x: mean + (1 - config.ema_decay) * (x - mean),
                ema,
                {"params": params, "batch_stats": batch_stats},
            )
        metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        if "logit_scale" in params:
            metrics["logit_scale"] = jnp.exp(params["logit_scale"])
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.key), metrics

    return step


def total_loss(terms, embeddings, batch, mesh, step):
    """Weighted sum of the terms that have started, and the metrics of all, named `term/metric`.

    A term that has not started is not computed, so that nothing of it, not even a NaN, gets anywhere; its metrics are
    NaN until then.
    """
    total, metrics = jnp.float32(0), {}
    for name, function, weight, start_step, *_ in terms:

        def value_of(embeddings, function=function):
            return function(embeddings, batch, mesh)

        if start_step > 0:
            loss, shapes = jax.eval_shape(value_of, embeddings)
            silent = jnp.zeros((), loss.dtype), jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
            value, details = jax.lax.cond(step >= start_step, value_of, lambda _, silent=silent: silent, embeddings)
        else:
            value, details = value_of(embeddings)
        total += weight * value
        metrics |= {f"{name}/{key}": detail for key, detail in details.items()}
    return total, metrics


def clamp_logit_scale(params, highest):
    """Keeps exp(logit_scale), of the model and of its heads, at most `highest` (0: no clamp, as Mammo-CLIP), on the
    parameter as CLIP does."""
    if not highest:
        return params

    def clamp(path, x):
        scale = re.fullmatch(r"(heads/\w+/)?logit_scale", slash_name(path))
        return jnp.minimum(x, jnp.log(highest)).astype(x.dtype) if scale else x

    return jax.tree_util.tree_map_with_path(clamp, params)
