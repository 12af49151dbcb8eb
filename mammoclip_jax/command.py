"""What the commands share: errors that are the user's, logs, options, the JSON file."""

import errno
import json
import logging
import os
import runpy
import shlex
import sys
import textwrap
import traceback
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from mammoclip_jax.errors import STOPPED as STOPPED_LINE
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.names import suggestion

HELP = frozenset(("--help", "-h", "-help", "--helpshort"))
STOPPED, CLOSED = 130, 141  # as a shell says it of Ctrl-C, and of a pipe that nobody reads any more
REMEDIES = {  # of what goes wrong on a disk, whoever writes
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "Make room and run the same command again; what was finished is kept."
    ),
    errno.EROFS: "This file system is read-only: name a folder on another.",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Name a folder that you may write to, or have its rights changed."),
}
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
            status = main(argv)
            sys.stdout.flush()  # a pipe that was closed is known of here, not when Python ends
            return status
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return _stopped()
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            where = f" {error.filename}" if error.filename else ""
            print(f"error: {error.strerror}:{where or ' while writing'}. {REMEDIES[error.errno]}", file=sys.stderr)
            return 2

    if HELP.intersection(sys.argv[1:]):
        print(help_text(sys.modules["__main__"]))
        return
    try:
        app.run(guarded, flags_parser=_parsed)
    except KeyboardInterrupt:  # while flags and the config are read
        sys.exit(_stopped())


def _parsed(argv: list[str]) -> list[str]:
    """Sets the flags; what is wrong with a config file, or with a field of it, is said in a line."""
    named = _named_config(argv)
    try:
        if named and not Path(named.partition(":")[0]).is_file():
            load_config(named)  # ml_collections would say so only when the config is used
        return flags.FLAGS(argv)
    except Exception as error:
        try:
            explanation = _unknown_field(argv, load_config(named)) if named else ""
        except UserError as wrong:
            explanation = str(wrong)
        if not explanation and not isinstance(error, flags.Error):
            raise
        print(f"error: {explanation or f'{error} (--help shows all flags.)'}", file=sys.stderr)
        sys.exit(2)


def _stopped() -> int:
    print(f"\n{STOPPED_LINE}", file=sys.stderr)
    return STOPPED


def _named_config(argv: list[str]) -> str:
    """The value of --config, the last one; '' without, or where the command has no such flag."""
    named = ""
    for argument, following in zip(argv[1:], [*argv[2:], ""]):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            named = value if equals else following
    return named if "config" in flags.FLAGS else ""


def load_config(named: str):
    """The config that FILE's get_config() returns, or get_config(VARIANT) of FILE:VARIANT.

    Raises:
        UserError: there is no such file, or it makes no config: the message has the line and what is wrong there.
    """
    from ml_collections import ConfigDict  # which a command without a config does without

    file, colon, variant = named.partition(":")
    if not Path(file).is_file():
        near = suggestion(file, map(str, Path(file).parent.glob("*.py")))
        raise UserError(f"--config={named}: there is no file {file}.{near}")
    try:
        content = runpy.run_path(file)
        if "get_config" not in content:
            raise UserError(f"{file} is no config: it has no function get_config(), which returns one.")
        config = content["get_config"](variant) if colon else content["get_config"]()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{file}{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returned {config!r} and no config: end it with `return config`.")
    return config


def _unknown_field(argv, config) -> str:
    """Which --config.a.b of the command line the config does not have, with the nearest name; '' if it has all."""
    from ml_collections import ConfigDict

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


def help_text(module) -> str:
    """What --help shows of a command: what its file says, as it stands there, and its flags with their defaults."""
    own = flags.FLAGS.get_flags_for_module(module.__name__) or flags.FLAGS.get_key_flags_for_module(module)
    shown = []
    for flag in sorted(own, key=lambda flag: flag.name):
        name = f"[no]{flag.name}" if flag.boolean else flag.name
        default = "" if flag.default in (None, "", [], False) else f" Default: {flag.default_as_str.strip(chr(39))}."
        said = " ".join(str(flag.help).split()).replace(
            "; repeat this option to specify a list of values", " May be repeated."
        )
        words = textwrap.fill(f"{said}{default}", 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
        shown.append(f"  --{name}\n{words}")
    return "\n".join([str(module.__doc__).strip(), "", "flags, each --name=value:", *shown])


def line() -> str:
    """The command of this process, to be repeated: `python -m mammoclip_jax.evaluate --weights=...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return shlex.join([*start, *sys.argv[1:]])


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
