"""Who may import whom, read from the source, so that the picture in the README stays true."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mammoclip_jax"
GROUND = {"boxes", "command", "config", "errors", "files", "locks", "memory", "names", "progress", "provenance"}
GROUND |= {"pages", "terminal", "types"}
BELOW = {  # of each folder, and of check.py and run.py
    "data": set(),
    "models": set(),
    "losses": set(),
    "explain": {"models"},
    "training": {"losses"},
    "weights": {"data", "models", "training"},
    "tasks": {"data", "losses", "models", "training"},
    "inference": {"data", "explain", "models", "training", "weights"},
    "delivery": {"data", "inference"},
    "evaluation": {"data", "explain", "inference", "models"},
    "viewer": {"data", "delivery", "evaluation", "explain", "inference"},
    "service": {"data", "delivery", "inference"},
    "aot": {"losses", "models", "tasks", "training"},
    "check": {"data", "evaluation", "inference", "tasks", "training"},
    "run": {"check", "data", "evaluation", "inference", "tasks", "training", "weights"},
    "reproduction": {"data", "evaluation", "inference", "run", "tasks", "weights"},
    "benchmarks": {"aot", "data", "evaluation", "inference", "models", "run", "service", "tasks", "training"},
}
SHARED = {"finetune": {"pretrain"}}  # the flags of a training; no other command is imported
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path, everywhere=True):
    """Dotted names that a file imports; not `everywhere`: when it is imported itself."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - BELOW.keys() - GROUND


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    parts, path = name.split(".")[1:2], FILES[name]
    folder = parts[0] if parts else ""
    allowed = {folder} | BELOW[folder] | GROUND if folder in BELOW else GROUND
    if folder in COMMANDS or not folder or path.name == "__main__.py":
        allowed = BELOW.keys() | GROUND | SHARED.get(folder, set())
    for other in imports(path):
        top, _, rest = other.partition(".")
        if top == "mammoclip_jax" and rest:
            assert rest.split(".")[0] in allowed, f"{path} imports {other}"
        if folder == "data":
            assert top not in ("jax", "flax", "optax", "orbax"), f"{path} imports {other}"
        if other.startswith(("flax.linen", "flax.nnx")):
            assert folder == "models", f"{path} imports {other}"
        assert top not in ("tensorflow", "torch") or path.name.endswith("torch_peer.py"), f"{path} imports {other}"


def test_no_module_needs_itself():
    needed = {
        name: {other if other in FILES else other.rpartition(".")[0] for other in imports(path, everywhere=False)}
        for name, path in FILES.items()
    }
    TopologicalSorter({name: others & FILES.keys() for name, others in needed.items()}).prepare()


def test_modules_stay_short():
    too_long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not too_long
