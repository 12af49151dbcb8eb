"""Who may import whom, read from the source, so that the picture in the README stays true."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mammoclip_jax"
BASE = {"errors", "files", "locks", "memory", "names", "types"}
ALLOWED = {
    "data": BASE,
    "models": BASE | {"boxes"},
    "losses": BASE | {"boxes"},
    "training": BASE | {"losses"},
    "evaluation": BASE | {"boxes", "data", "explain", "provenance"},
    "explain": BASE | {"models", "training"},
    "weights": BASE | {"models", "training"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "mammoclip_jax":
                yield from (f"mammoclip_jax.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    folder = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "mammoclip_jax" and rest and folder in ALLOWED and path.name != "__main__.py":     # a command
            target = rest.split(".")[0]
            own_command = target == "command" and path.parent.name == "sources"
            assert target == folder or target in ALLOWED[folder] or own_command, f"{path} imports {name}"
        if folder == "data":
            assert top not in ("jax", "flax", "optax", "orbax"), f"{path} imports {name}"
        if name.startswith("flax.linen") or name == "flax":
            assert folder == "models", f"{path} imports {name}"
        assert top not in ("tensorflow", "torch") or path.name == "torch_peer.py", f"{path} imports {name}"


def test_modules_stay_short():
    too_long = {str(path.relative_to(PACKAGE)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not too_long
