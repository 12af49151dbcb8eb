"""What people write: the argument behind a config's name, and the flags with NAME=VALUE."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes

PROTOCOLS = ("default", "published")


def config_argument(text: str, **known: Any) -> ConfigDict:
    """`label=mass,fraction=10` as the fields `known`, which give the defaults and the kinds.

    Raises:
        UserError: another field, or a value that is no number where one is needed.
    """
    values = dict(known)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        check_name(name, known, "field of the config's argument")
        try:
            values[name] = type(known[name])(value)
        except ValueError:
            raise UserError(f"the config's argument has {part!r}: {name} is a number.") from None
    check_name(values["protocol"], PROTOCOLS, "protocol")
    check_name(values["encoder"], recipes.ENCODERS, "encoder")
    if not 0 < values.get("fraction", 100) <= 100:
        raise UserError(f"the config's argument has fraction={values['fraction']}: per cent, above 0, up to 100.")
    return ConfigDict(values)


def pairs(parts: list[str], flag: str, known: Collection[str] | None = None, alone: bool = False) -> dict[str, str]:
    """{name: value} of NAME=VALUE; with `alone` a value without a name of `known` has the name "".

    Raises:
        UserError: no such name, a name twice, or none where there has to be one.
    """
    values: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if alone and (not equals or name not in known and Path(part).exists()):
            name, value = "", part
        elif known is not None:
            check_name(name, known, f"name for --{flag}")
        if name in values or not value:
            raise UserError(f"--{flag}={part}: " + ("give it once." if name in values else "NAME=VALUE is needed."))
        values[name] = value
    return values


def value(text: str) -> Any:
    """JSON where it is, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
