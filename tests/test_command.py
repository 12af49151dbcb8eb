"""Commands for people: one list of them, help with its line breaks, status 0, and no path of this machine."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from mammoclip_jax import __main__ as commands

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mammoclip_jax", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_commands_are_listed_and_each_says_what_it_is():
    done = run()
    assert done.returncode == 0 and run("--help").stdout == done.stdout
    lines = done.stdout.splitlines()[: len(commands.COMMANDS)]
    assert [line.split()[:2] for line in lines] == [["mammoclip", name] for name in commands.COMMANDS]
    assert all(len(line.split()) > 5 for line in lines)


def test_a_wrong_name_gets_the_nearest():
    done = run("pretrian")
    assert done.returncode == 2 and "Did you mean 'pretrain'?" in done.stderr and "Traceback" not in done.stderr


def test_help_keeps_its_lines_and_ends_with_status_0():
    done = run("compile", "--help")  # it imports no jax
    assert done.returncode == 0 and str(ROOT) not in done.stdout
    assert "--images_per_chip=8 \\\n        --config" in done.stdout
    assert (
        "  --[no]search\n      Find the largest batch that fits" in done.stdout and "Default: v5e:4x4." in done.stdout
    )


@pytest.mark.parametrize(
    "raised, status, said",
    [
        ("KeyboardInterrupt()", 130, "stopped by Ctrl-C"),
        ("OSError(errno.ENOSPC, 'No space left on device', 'runs/x')", 2, "left on device: runs/x. Make room and run"),
        ("OSError(errno.EROFS, 'Read-only file system')", 2, "Read-only file system: while writing. This file system"),
        ("PermissionError(errno.EACCES, 'Permission denied', '/etc/x')", 2, "/etc/x. Name a folder that you may write"),
        ("UserError('so it is')", 2, "error: so it is"),
    ],
)
def test_stops_and_disks_end_in_one_line(raised, status, said):
    code = f"""
import errno
from mammoclip_jax import command
from mammoclip_jax.errors import UserError
def main(argv):
    raise {raised}
command.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_package_has_one_program_and_one_version():
    scripts = {e.name: e.value for e in importlib.metadata.entry_points(group="console_scripts")}
    if "mammoclip" not in scripts:
        pytest.skip("the package is not installed, or as it was before it had a program")
    assert scripts["mammoclip"] == "mammoclip_jax.__main__:main"
    assert run("--version").stdout.strip() == importlib.metadata.version("mammoclip_jax")
