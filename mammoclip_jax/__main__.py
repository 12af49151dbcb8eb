"""Lists the commands."""

import ast
from pathlib import Path

COMMANDS = (
    "prepare",
    "pretrain",
    "finetune",
    "regions",
    "evaluate",
    "predict",
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


if __name__ == "__main__":
    for command in COMMANDS:
        print(f"python -m mammoclip_jax.{command:<10} {summary(command)}")
    print("\nEach has --help, with examples. README.md says how they go together.")
