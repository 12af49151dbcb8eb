"""What the commands share: errors that are the user's, logs, options, the JSON file."""

import json
import logging
import runpy
import sys
from pathlib import Path

from absl import app
from absl import logging as absl_logging

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.names import suggestion

INTERRUPTED = 75  # EX_TEMPFAIL: stopped on request and saved; the same command goes on


def run(main, *, words: bool = False) -> None:
    """`main(argv)` as a program: a UserError is printed without a traceback and ends with status 2.

    `words`: whether the command takes words that are no --options.
    """

    def guarded(argv):
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of what is not amiss
        for noisy in ("jax", "orbax", "grain", "pydicom"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if len(argv) > 1 and not words:
            raise SystemExit(f"error: unknown arguments {argv[1:]}; options are written --name=value, see --help")
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    try:
        app.run(guarded)
    except (AttributeError, KeyError):  # ml_collections raises these while it parses an unknown --config.field
        explanation = _unknown_field(sys.argv)
        if not explanation:
            raise
        print(f"error: {explanation}", file=sys.stderr)
        sys.exit(2)


def _unknown_field(argv) -> str:
    """Which --config.a.b of the command line the config does not have, with the nearest name; '' if it has all."""
    files = [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]
    if not files:
        return ""
    from ml_collections import ConfigDict  # which a command without a config does without

    file, _, text = files[-1].partition(":")
    get_config = runpy.run_path(file)["get_config"]
    config = get_config(text) if text else get_config()
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        name, holder = argument[2:].split("=")[0], config
        for part in name.split(".")[1:]:
            if not isinstance(holder, ConfigDict) or part not in holder:
                known = list(holder) if isinstance(holder, ConfigDict) else []
                return (
                    f"--{name}: the config has no field {part!r} there.{suggestion(part, known)} "
                    f"Known: {', '.join(known)}."
                )
            holder = holder[part]
    return ""


def parse_options(pairs: list[str]) -> dict:
    """["key=value", ...] -> {key: value} of --option; numbers, true and false as such, anything else as text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--option={pair} has no value. Write --option=key=value.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def write_json(path: str, figures: dict) -> None:
    """Writes `figures` where --json asked for it ('' is nowhere), whole or not at all."""
    if not path:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(figures, indent=2, default=str) + "\n")
