"""All commands as one: `mammoclip pretrain ...`, or `python -m mammoclip_jax pretrain ...`."""

import ast
import runpy
import sys
from pathlib import Path

from mammoclip_jax.errors import in_one_line
from mammoclip_jax.names import suggestion

COMMANDS = (
    "prepare",
    "pretrain",
    "finetune",
    "regions",
    "evaluate",
    "predict",
    "calibrate",
    "view",
    "serve",
    "compare",
    "slices",
    "weights",
    "reproduce",
    "benchmark",
    "compile",
)


def summary(name: str) -> str:
    """The first line of what a command's file says of itself; it is not imported."""
    path = Path(__file__).parent / name
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")[0]


def listing() -> str:
    """The commands, a line each."""
    lines = [f"mammoclip {name:<10} {summary(name)}" for name in COMMANDS]
    return "\n".join([*lines, "", "Each has --help, with examples. README.md says how they go together."])


def main() -> int:
    """Runs the command that the first word names, as `python -m mammoclip_jax.NAME` does; lists all without one."""
    sys.excepthook = in_one_line  # until the command itself answers Ctrl-C
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv = sys.argv[1:]
        runpy.run_module(f"mammoclip_jax.{name}", run_name="__main__", alter_sys=True)
        return 0
    if name == "--version":
        from mammoclip_jax.provenance import version

        print(version("mammoclip_jax"))
    elif name in ("", "--help", "-h"):
        print(listing())
    else:
        print(
            f"error: there is no command {name!r}.{suggestion(name, COMMANDS)} See mammoclip --help.", file=sys.stderr
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
