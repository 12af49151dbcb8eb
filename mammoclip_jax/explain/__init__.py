"""Saliency maps: which parts of an image speak for a text or a label?

To add a method: write `(subject, pixels, direction, stage, **options) -> map` in a file here and give it a line in
`METHODS`. `subject` is a `maps.Subject`, `pixels` [1 H W C] what the network sees of one image, `direction` [D] what is
asked about. The map is signed, and larger where more speaks for the direction. Methods over "attributes" may be asked
about several stages, "stage2+stage3": the maps of each are laid over the image and added up.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name, load, suggestion


class Method(NamedTuple):
    """`over` is what the map is over: "stage", a stage map of the encoder; "pooled", the one that is pooled and
    projected; "head", the one that a head of kind local sees, in whose space the direction lies; "attributes", those whose
    channels the adapters of a model of attributes see; "tokens", a transformer's patches; "image", the pixels."""

    title: str
    function: str
    over: str


METHODS = {
    "grad_cam": Method("Grad-CAM", "cam.grad_cam", "stage"),
    "grad_cam_pp": Method("Grad-CAM++", "cam.grad_cam_pp", "stage"),
    "hires_cam": Method("HiResCAM", "cam.hires_cam", "stage"),
    "similarity": Method("similarity to the text at each place", "similarity.similarity", "pooled"),
    "local_alignment": Method("similarity of sentence and patch", "local_alignment.local_alignment", "head"),
    "factor": Method("Mammo-FActOR", "factor.factor", "attributes"),
    "attention_rollout": Method("attention rollout", "rollout.attention_rollout", "tokens"),
    "integrated_gradients": Method("integrated gradients", "integrated_gradients.integrated_gradients", "image"),
    "occlusion": Method("occlusion", "occlusion.occlusion", "image"),
    "brightness": Method("brightness", "brightness.brightness", "image"),
}


def function_of(method: str, options: Mapping[str, Any] = {}) -> Callable:
    """The function of a method that `options` fit.

    Raises:
        UserError: there is no such method, or it has no such option.
    """
    function = load(__name__, {name: known.function for name, known in METHODS.items()}, method, "method")
    known = tuple(function.__kwdefaults__ or ())
    for option in options:
        if option not in known:
            raise UserError(
                f"{method} has no option {option!r}.{suggestion(option, known)} Known: {', '.join(known) or 'none'}."
            )
    return function


SUM = "+"  # between the names of stages whose maps are added up


def stage_of(
    method: str,
    stage: str | None,
    encoder,
    stages: Iterable[str],
    local: Sequence[str] = (),
    attributes: Sequence[str] = (),
) -> str:
    """The stage of the image encoder that the method looks at, or several with `SUM` between; "" where it looks at none.

    Args:
        stage: the one that is asked for; None or "" leaves the choice to the method: the last one that has a gradient,
            or all whose channels have scores.
        encoder: the encoder's module; stages: names of its maps; local: those that a head of kind local sees; attributes:
            those whose channels have scores for attributes.

    Raises:
        UserError: there is no such method or stage, or the method cannot look at it, or not into this encoder.
    """
    check_name(method, METHODS, "method")
    kind, stages = type(encoder).__name__, tuple(stages)
    over = METHODS[method].over
    if over == "attributes":
        return _with_scores(method, stage, attributes)
    if stage and stage not in stages:
        raise UserError(
            f"the image encoder has no stage {stage!r}.{suggestion(stage, stages)} Stages: {', '.join(stages)}."
        )
    if over == "stage":
        # On the first of several stages whose channels have scores all of these scores depend.
        last = min(attributes, key=stages.index) if attributes else getattr(encoder, "grad_cam_stage", stages[-1])
        return stage or last
    if over == "head":
        if not local:
            raise UserError(
                f"{method} needs a dual encoder with a head of kind local (config.model.heads), and this model has "
                "none: use similarity or hires_cam."
            )
        check_name(stage or local[0], local, "local head at the stage")
        return stage or local[0]
    if over == "pooled":
        pooled = getattr(encoder, "pooled_stage", None)
        if pooled not in stages:
            raise UserError(
                f"{method} needs a stage whose cells are projected as the pooled vector is, and this "
                f"{kind} returns none: use grad_cam."
            )
        if stage and stage != pooled:
            raise UserError(
                f"{method} projects the cells of stage {pooled!r}, which the model pools and projects: not "
                f"those of {stage!r}. Leave the stage out."
            )
        return pooled
    if over == "tokens" and not hasattr(encoder, "pooled_tokens"):
        raise UserError(
            f"{method} needs an encoder in which every token attends to every other one (vit, dinov2), not "
            f"{kind}: use grad_cam."
        )
    if stage:
        raise UserError(f"{method} looks at no single stage of the encoder: leave stage={stage!r} out.")
    return ""


def _with_scores(method: str, stage: str | None, attributes: Sequence[str]) -> str:
    """The stages that are asked for, of those whose channels have scores; without any all of these."""
    if not attributes:
        raise UserError(
            f"{method} weighs the channels of an encoder by their scores for attributes, and this model has none: train "
            "them on it (config.task.kind='attributes', docs/factor.md), or use hires_cam or similarity."
        )
    asked = stage.split(SUM) if stage else list(attributes)
    for name in asked:
        check_name(name, attributes, "stage of the attributes")
    if len(set(asked)) < len(asked):
        raise UserError(f"{method} adds up stages, and {stage!r} names one twice.")
    return SUM.join(asked)
