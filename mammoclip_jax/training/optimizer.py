"""The optimiser and its schedule from the config, with rules on slash-named parameter paths."""

import re
from collections.abc import Callable, Mapping

import jax
import optax

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup, suggestion

# (config.train, steps left) -> schedule after the warm-up. The cosine is Mammo-CLIP's (codebase/breastclip/scheduler/
# warmup_cosine.py), lr cos^2(pi t / 2), which is lr (1 + cos(pi t)) / 2.
SCHEDULES = {
    "cosine": lambda train, steps: optax.cosine_decay_schedule(
        train.lr, steps, train.min_lr and train.min_lr / train.lr
    ),
    "linear": lambda train, steps: optax.linear_schedule(train.lr, train.min_lr, steps),
    "constant": lambda train, steps: optax.constant_schedule(train.lr),
    "step": lambda train, steps: optax.piecewise_constant_schedule(
        train.lr, {step - train.warmup_steps: train.decay_factor for step in train.decay_steps}
    ),
}
# (config.train, schedule, which parameters decay) -> optimiser. SGD is torch's: the decay is a part of the gradient.
OPTIMIZERS = {
    "adamw": lambda train, rate, decayed: optax.adamw(
        rate, b1=train.b1, b2=train.b2, eps=train.eps, weight_decay=train.weight_decay, mask=decayed
    ),
    "sgd": lambda train, rate, decayed: optax.chain(
        optax.add_decayed_weights(train.weight_decay, decayed), optax.sgd(rate, momentum=train.momentum)
    ),
}


def schedule(config) -> optax.Schedule:
    """The rate by step: linear warm-up from `min_lr` to `lr`, then as `config.schedule` says.

    "cosine" and "linear" come to `min_lr` at the last step, "constant" stays, and "step" is multiplied by
    `decay_factor` at each of `decay_steps`, counted from the run's first step.

    Raises:
        UserError: there is no such schedule, its steps do not rise between the warm-up and the last one, or `min_lr` is
            above `lr`.
    """
    make = lookup(SCHEDULES, config.schedule, "config.train.schedule")
    if config.min_lr > config.lr:
        raise UserError(f"config.train.min_lr={config.min_lr} must be at most config.train.lr={config.lr}.")
    places = (config.warmup_steps, *config.decay_steps, config.steps)
    if config.schedule == "step" and not all(one < other for one, other in zip(places, places[1:])):
        raise UserError(
            f"config.train.decay_steps={tuple(config.decay_steps)} must rise, between "
            f"config.train.warmup_steps={config.warmup_steps} and config.train.steps={config.steps}."
        )
    after = make(config, config.steps - config.warmup_steps)
    warm_up = optax.linear_schedule(config.min_lr, config.lr, config.warmup_steps)
    return optax.join_schedules([warm_up, after], [config.warmup_steps])


def make_optimizer(config, params, towers=(), starts: Mapping[str, int] = {}) -> optax.GradientTransformation:
    """`config.optimizer` with clipping, weight decay by rule and frozen parameters (see `frozen_parameters`).

    `config.no_decay` is a list of regular expressions, matched from the start of a parameter's path such as
    `image_encoder/block00/depthwise/kernel`.

    Args:
        starts: {path of a part, such as heads/local: the step from which on it is trained}. Before, it is left alone:
            no decay, no moments, and the correction of their bias counts from there (as torch, whose optimisers skip
            what has no gradient). Its rate is that of the run's step all the same.

    Raises:
        UserError: a rule matches no parameter (most often a misspelt path), or there is no such optimiser.
    """
    make, rate = lookup(OPTIMIZERS, config.optimizer, "config.train.optimizer"), schedule(config)
    late = {path: start for path, start in starts.items() if start > 0}
    decayed = jax.tree.map(lambda hit: not hit, matches(params, config.no_decay, "config.train.no_decay"))
    frozen = frozen_parameters(config, params, towers)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    # The norm is over all that is trained. Without parts that start late this is the one group, which keeps the form
    # that the states of runs have.
    steps = [*([] if late else clip), make(config, rate, decayed)]
    if config.layer_decay != 1.0:
        factors = layer_factors(params, config.layer_decay)
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(_times, updates, factors, is_leaf=_masked)))

    def label(path, hit):
        name = slash_name(path)
        start = next((start for part, start in late.items() if name.startswith(f"{part}/")), None)
        return "frozen" if hit else "trained" if start is None else f"from {start}"

    groups = {"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}
    groups |= {
        f"from {start}": _starting(start, lambda later: make(config, later, decayed), rate)
        for start in set(late.values())
    }
    grouped = optax.multi_transform(groups, jax.tree_util.tree_map_with_path(label, frozen))
    return optax.chain(*clip, grouped) if late and clip else grouped


def _starting(start: int, make: Callable, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser `make(schedule)`, which counts from 0, from the step `start` on; before, nothing changes."""
    return optax.transforms.conditionally_mask(make(lambda step: rate(step + start)), lambda step: step >= start)


def _masked(update) -> bool:
    """Whether it stands for that of a frozen parameter, which another part of the optimiser takes care of."""
    return isinstance(update, optax.MaskedNode)


def _times(update, factor):
    return update if _masked(update) else update * factor


def frozen_parameters(config, params, towers=()):
    """A tree like `params` of booleans: which of them training leaves as they are.

    Those that a regular expression of `config.frozen` matches, all of the encoders of `towers` (config.model.frozen)
    and, as in PEFT, all base parameters of a module that LoRA adapts (models/lora.py).

    Raises:
        UserError: a rule matches no parameter.
    """
    whole = {f"{tower}_encoder" for tower in towers} | set(params.get("lora", ()))
    by_rule = matches(params, config.frozen, "config.train.frozen")
    return {name: jax.tree.map(lambda hit, name=name: hit or name in whole, tree) for name, tree in by_rule.items()}


def layer_factors(params, decay: float):
    """A tree like `params`: the factor on each parameter's update, `decay ** d` at depth d below the encoder's top.

    Layers of the image encoder are its numbered blocks; what comes before them is one more, what comes after, and all
    other parts of the model, have 1. As BEiT (Bao et al. 2021, arXiv:2106.08254) and MAE fine-tune.
    """
    encoder = params.get("image_encoder", {})
    places = {slash_name(path): _layer(slash_name(path)) for path, _ in jax.tree_util.tree_leaves_with_path(encoder)}
    numbered = sorted({place for place in places.values() if place})
    depth = {place: len(numbered) - i for i, place in enumerate(numbered)} | {(): 0, None: len(numbered) + 1}

    def factor(path, _):
        tower, _, inside = slash_name(path).partition("/")
        return decay ** depth[places[inside]] if tower == "image_encoder" else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


def _layer(path: str):
    """Numbers of the blocks that a parameter of an image encoder is in; None before the first, () after the last."""
    parts = path.split("/")
    if parts[0].startswith(("stem", "embeddings", "conv1", "bn1")):
        return None
    named = (part for part in parts if re.match(r"(block|layer|stage)s?_?\d", part))
    return tuple(int(number) for part in named for number in re.findall(r"\d+", part))


def matches(params, rules, field: str):
    """A tree like `params` of booleans: does any of `rules` match the path?"""
    paths = jax.tree_util.tree_map_with_path(lambda path, _: slash_name(path), params)
    for rule in rules:
        if not any(re.match(rule, name) for name in jax.tree.leaves(paths)):
            raise UserError(
                f"{field}: no parameter path matches {rule!r}.{suggestion(rule, jax.tree.leaves(paths))} The parameter "
                "table in a run's log.txt lists all paths."
            )
    return jax.tree.map(lambda name: any(re.match(rule, name) for rule in rules), paths)


def slash_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
