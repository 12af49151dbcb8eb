"""What an evaluation is asked for, looked at before anything is opened or computed.

An evaluator says more of its options than their names by the attribute `choices`, {option: the values that it knows}, and by
`check(model, **options)`, which raises UserError, as does `check_data(dataset, **options)` once the data are open. Of options
that several share the table `SHARED` knows what they may be.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mammoclip_jax import explain
from mammoclip_jax.data.manifest import SPLITS
from mammoclip_jax.data.text import concepts
from mammoclip_jax.errors import UserError, together
from mammoclip_jax.evaluation import EVALUATORS, MODELS
from mammoclip_jax.inference import prompt_files
from mammoclip_jax.names import check_name, check_options, load

ALL = "all"  # splits


class Plan(NamedTuple):
    """An entry of a config: the evaluator's function, its options, the only data sets that it is for (none: all)."""

    function: Callable
    options: dict[str, Any]
    folders: tuple[str, ...]


class Planned(NamedTuple):
    """A model that is not there yet, as far as evaluators ask before they compute."""

    kind: str
    labels: tuple[str, ...] = ()
    encoder: Any = None  # the image encoder's module
    stages: tuple[str, ...] = ()
    local_heads: tuple[str, ...] = ()  # stages that heads of kind local see
    attribute_stages: tuple[str, ...] = ()

    def map_stage(self, method: str, stage: str | None = None) -> str:
        """As of a model."""
        return explain.stage_of(method, stage, self.encoder, self.stages, self.local_heads, self.attribute_stages)


def check_split(name: str) -> None:
    """Raises UserError unless it is a split, or all of them."""
    check_name(name, (*SPLITS, ALL), "split")


def _concepts(value: str | Mapping[str, Any]) -> None:
    if isinstance(value, str):
        concepts.load(value)


SHARED: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("split", "train_split", "val_split", "texts_split"), check_split),
    "choose_on": lambda value: value and check_split(value),
    "concepts": _concepts,
}


def plan(model, name: str, options: Mapping[str, Any]) -> Plan:
    """The plan of an entry of a config.

    Raises:
        UserError: an unknown evaluator or option, or an evaluator that is not for this kind of model.
    """
    options = dict(options)
    folders = tuple(options.pop("folders", ()))
    evaluator = options.pop("evaluator", name)
    function = load(f"{__package__}.evaluators", EVALUATORS, evaluator, "evaluator")
    if model.kind not in MODELS.get(evaluator, (model.kind,)):
        possible = [other for other in EVALUATORS if model.kind in MODELS.get(other, (model.kind,))]
        raise UserError(
            f"the evaluator {evaluator!r} takes a {' or '.join(MODELS[evaluator])}, and this model is a "
            f"{model.kind}. For it there are: {', '.join(possible)}."
        )
    check_options(function, options, f"evaluator {name!r}")
    parameters = inspect.signature(function).parameters.values()
    needed = [known.name for known in parameters if known.kind is known.KEYWORD_ONLY and known.default is known.empty]
    if missing := [option for option in needed if option not in options]:
        raise UserError(f"evaluator {name!r} needs the option {missing[0]!r}: set it.")
    return Plan(function, options, folders)


def check(model, evaluators: Mapping[str, Mapping[str, Any]], *, split: str = ALL, folders: Iterable[str] = ()) -> None:
    """Raises one UserError with all that is wrong with the evaluators of a config, without a look at data.

    Args:
        model: a loaded one, or a `Planned` one.
        split: of entries without one of their own.
        folders: names of the data sets that there will be; () leaves them out.
    """
    entries = (functools.partial(_entry, model, name, options, folders) for name, options in evaluators.items())
    together(lambda: check_split(split), *entries)


def check_data(evaluators: Mapping[str, Mapping[str, Any]], datasets: Mapping[str, Any]) -> None:
    """Raises one UserError with all that the data sets lack for the evaluators of a config, without a look at images."""
    checks = []
    for name, given in evaluators.items():
        given = dict(given)
        folders = given.pop("folders", ()) or datasets
        function = load(f"{__package__}.evaluators", EVALUATORS, given.pop("evaluator", name), "evaluator")
        if look := getattr(function, "check_data", None):
            checks += [functools.partial(look, datasets[folder], **given) for folder in folders if folder in datasets]
    together(*checks)


def _entry(model, name: str, options: Mapping[str, Any], folders: Iterable[str]) -> None:
    wanted = plan(model, name, options)
    function, given = wanted.function, wanted.options

    def called(check: Callable[[Any], object], option: str) -> None:
        try:
            check(given[option])
        except UserError as error:
            raise UserError(f"evaluator {name!r}, {option}: {error}") from error

    choices = {
        option: functools.partial(check_name, known=known, kind=option)
        for option, known in getattr(function, "choices", {}).items()
    }
    together(
        *(
            functools.partial(check_name, folder, folders, f"data set for {name!r}:")
            for folder in wanted.folders
            if folders
        ),
        *(functools.partial(called, check, option) for option, check in (SHARED | choices).items() if option in given),
        lambda: getattr(function, "check", lambda model, **options: None)(model, **given),
        lambda: _maps(model, function, given),
        lambda: _labels(model, name, function, given),
    )


def _maps(model, function: Callable, given: Mapping[str, Any]) -> None:
    """Of an evaluator of maps: the method, its options, and the stage that it looks at."""
    parameters = inspect.signature(function).parameters
    if not {"method", "stage"} <= parameters.keys() or not model.stages:
        return
    method = given.get("method", parameters["method"].default)
    method = method or ("factor" if model.attribute_stages else "hires_cam")
    explain.function_of(method, given.get("options", {}))
    model.map_stage(method, given.get("stage"))


def _labels(model, name: str, function: Callable, given: Mapping[str, Any]) -> None:
    """The prompts of a dual encoder, and the labels that it, or a model of labels, is asked about."""
    parameters = inspect.signature(function).parameters
    known: Iterable[str] = getattr(model, "labels", ())
    if not known and "prompts" in parameters:
        prompts = prompt_files.load(given.get("prompts", parameters["prompts"].default))
        known = (*prompts.pairs, *prompts.classes)
    if known and "labels" in parameters and not given.get("texts"):
        for label in given.get("labels") or ():
            check_name(label, known, f"label for the evaluator {name!r}:")
