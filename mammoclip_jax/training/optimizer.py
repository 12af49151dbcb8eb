"""The optimiser and its schedule from the config, with rules on slash-named parameter paths."""

import re

import jax
import optax

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup

# (rate after the warm-up, steps left) -> schedule. The cosine is Mammo-CLIP's (codebase/breastclip/scheduler/
# warmup_cosine.py), lr cos^2(pi t / 2), which is lr (1 + cos(pi t)) / 2.
SCHEDULES = {
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    "constant": lambda lr, steps: optax.constant_schedule(lr),
}


def schedule(config) -> optax.Schedule:
    """The rate by step: linear warm-up from 0 to `lr`, then as `config.schedule` says, to 0 at the last step or constant.

    Raises:
        UserError: there is no such schedule.
    """
    after = lookup(SCHEDULES, config.schedule, "config.train.schedule")(config.lr, config.steps - config.warmup_steps)
    warm_up = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    return optax.join_schedules([warm_up, after], [config.warmup_steps])


def make_optimizer(config, params, towers=()) -> optax.GradientTransformation:
    """AdamW with clipping, weight decay by rule and frozen parameters (see `frozen_parameters`).

    `config.no_decay` is a list of regular expressions, matched from the start of a parameter's path such as
    `image_encoder/block00/depthwise/kernel`.

    Raises:
        UserError: a rule matches no parameter (most often a misspelt path).
    """
    decayed = jax.tree.map(lambda hit: not hit, matches(params, config.no_decay, "config.train.no_decay"))
    frozen = frozen_parameters(config, params, towers)
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    steps.append(
        optax.adamw(
            schedule(config), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decayed
        )
    )
    if config.layer_decay != 1.0:
        factors = layer_factors(params, config.layer_decay)
        steps.append(optax.stateless(lambda updates, _: jax.tree.map(_times, updates, factors, is_leaf=_masked)))
    labels = jax.tree.map(lambda hit: "frozen" if hit else "trained", frozen)
    return optax.multi_transform({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)


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
                f"{field}: no parameter path matches {rule!r}; the parameter table at the start of "
                "the log lists all paths."
            )
    return jax.tree.map(lambda name: any(re.match(rule, name) for rule in rules), paths)


def slash_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
