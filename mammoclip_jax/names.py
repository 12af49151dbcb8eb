"""Look a name up in one of the tables that the folders keep, with a helpful error."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from mammoclip_jax.errors import UserError

HUB = "hf://"
Value = TypeVar("Value")


def on_hub(name: str) -> tuple[str, bool]:
    """A name without "hf://", and whether it had that: else it may be a mistyped path, which nobody else is told of.

    Without it a name is looked up in the hub's local cache only.
    """
    return name.removeprefix(HUB).removeprefix("hf:/"), name.startswith("hf:/")  # pathlib makes one slash of two


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of `known`, or '' when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """`table[name]`.

    Raises:
        UserError: the name is not in the table; the message suggests the nearest and lists all.
    """
    check_name(name, table, kind)
    return table[name]


def load(package: str, table: Mapping[str, str], name: str, kind: str) -> Any:
    """What `table[name]` names: "module" or "module.attribute" below `package`, imported now and not with the table.

    Raises:
        UserError: the name is not in the table.
    """
    module, _, attribute = lookup(table, name, kind).partition(".")
    loaded = importlib.import_module(f"{package}.{module}")
    return getattr(loaded, attribute) if attribute else loaded


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raises UserError if `name` is not among `known`; the message suggests the nearest and lists all."""
    if name not in known:
        listed = ", ".join(sorted(known))
        raise UserError(f"there is no {kind} {name!r}.{suggestion(name, known)} Known: {listed}.")


def check_options(function: Callable, options: Iterable[str], kind: str) -> None:
    """Raises UserError if one of `options` is not a parameter of `function` (or of a module class)."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # it passes them on, and checks there
    known = [name for name in parameters if name not in ("parent", "name", "self")]
    for option in options:
        if option not in known:
            raise UserError(f"{kind} has no option {option!r}.{suggestion(option, known)} Known: {', '.join(known)}.")


def check_choices(what: str, values: object, choices: Mapping[str, Iterable[str | int]]) -> None:
    """Raises UserError if an attribute of `values` is not among its `choices`; `what` names it for people."""
    for field, known in choices.items():
        value = getattr(values, field)
        if value not in known:
            names = list(map(str, known))
            raise UserError(
                f"{what} has no {field} {value!r}.{suggestion(str(value), names)} Known: {', '.join(names)}."
            )
