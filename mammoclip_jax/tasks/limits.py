"""Which numbers a config may have, whatever its task."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mammoclip_jax.config import fields
from mammoclip_jax.errors import raise_all


class Limit(NamedTuple):
    """What a number of the fields that match is to be."""

    said: str
    holds: Callable[[Any], bool]
    fields: re.Pattern


def _limit(said: str, holds: Callable[[Any], bool], pattern: str) -> Limit:
    return Limit(said, holds, re.compile(pattern, re.VERBOSE))


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


LIMITS = (
    _limit(
        "a whole number of 1 or more",
        lambda value: _whole(value) and value >= 1,
        r"""train\.(steps|batch_size|micro_batches\.\w+) | evaluate\.batch_size | cpu_devices | image\.channels |
        model\.(dim|features|attributes\.dim) | data\.(text_length|views|texts|vocab_size|phrases\.length) |
        data\.phantom\.\w+\.(exams|height|width) | data\.prepare\.\w+\.(height|width)""",
    ),
    _limit(
        "a whole number of 0 or more",
        lambda value: _whole(value) and value >= 0,
        r"""seed | train\.(warmup_steps|log_every|eval_every|checkpoint_every) | sharding\.min_size | task\.(folds|patience) |
        data\.(sentences|boxes|read_threads|phrases\.count|regions\.places) | losses\.\w+\.start_step |
        model\.(text_classifier\.dim|attributes\.(hidden|channel_code)) |
        evaluate\.\w+evaluators\.\w+\.(resamples|gallery|seed)""",
    ),
    _limit(
        "-1 or a whole number of 1 or more", lambda value: _whole(value) and (value == -1 or value >= 1), r"mesh\.\w+"
    ),
    _limit(
        "above 0",
        lambda value: value > 0,
        r"train\.(lr|eps|decay_factor) | image\.std | model\.(logit_scale|text_classifier\.temperature)",
    ),
    _limit(
        "0 or more",
        lambda value: value >= 0,
        r"""train\.(min_lr|weight_decay|clip_norm|logit_scale_max|watchdog_seconds|watchdog_evaluation_seconds) |
        augment\.(rotate|translate|shear|contrast|brightness) | task\.(focal_gamma|dice_weight) | losses\.\w+\.weight |
        data\.weights\.\w+""",
    ),
    _limit(
        "0 or more and below 1",
        lambda value: 0 <= value < 1,
        r"train\.(b1|b2|momentum|ema_decay) | model\.\w+\.dropout",
    ),
    _limit("above 0 and at most 1", lambda value: 0 < value <= 1, r"train\.layer_decay | task\.fraction"),
    _limit(
        "a share from 0 to 1",
        lambda value: 0 <= value <= 1,
        r"""data\.(shuffle_sentences|flip_horizontal|flip_vertical|captions_share|augmented|unpaired\.share) |
        data\.partner\.\w+ | task\.focal_alpha""",
    ),
)


def check(config) -> None:
    """Raises UserError for numbers that no training has a use for: a batch of none, a rate below 0, a probability of 2."""
    raise_all(
        f"config.{name}={value!r} must be {limit.said}."
        for name, value in fields(config).items()
        for limit in LIMITS
        if limit.fields.fullmatch(name) and isinstance(value, (int, float)) and not limit.holds(value)
    )
