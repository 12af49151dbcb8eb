"""Commands for people: one list of them, help with its line breaks, status 0, and no path of this machine."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mammoclip_jax import __main__ as commands
from mammoclip_jax import weights
from mammoclip_jax.weights import actions

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


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_each_is_there_at_once(name):
    code = f"""
import sys
from mammoclip_jax import __main__ as commands
sys.argv = ["mammoclip", "{name}", "--help"]
status = commands.main()
print([name for name in ("jax", "pandas", "transformers", "flax", "matplotlib", "cv2") if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "[]\n"
    assert (
        done.stdout.startswith(commands.summary(name) + "\n\n") and "\nflags, each --name=value:\n  --" in done.stdout
    )
    assert f"\n    python -m mammoclip_jax.{name} " in done.stdout and str(ROOT) not in done.stdout


@pytest.mark.parametrize("start", [("-m", "mammoclip_jax.predict"), ("-m", "mammoclip_jax", "predict")])
@pytest.mark.parametrize("module", ["absl", "numpy"])  # before `command.run`, and in what `main` imports
def test_a_stop_at_the_start_is_one_line(start, module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    command = [sys.executable, *start, "--weights=x", "--exam=x", "--out=x"]
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr.strip() == "stopped by Ctrl-C. What was finished is kept; run the same command again."


def test_a_stop_while_the_config_is_read_is_one_line(tmp_path):
    (tmp_path / "config.py").write_text("raise KeyboardInterrupt\n")
    done = run("evaluate", "--workdir=x", f"--config={tmp_path / 'config.py'}")
    assert done.returncode == 130 and len(done.stderr.strip().splitlines()) == 1 and "Ctrl-C" in done.stderr


def test_help_names_what_weights_do():
    assert tuple(actions.FORMATS) == weights.FORMATS
    assert all(callable(getattr(actions, name)) for name in weights.ACTIONS.values())


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


def test_a_pipe_that_was_closed_is_no_error():
    code = "from mammoclip_jax import command\ncommand.run(lambda argv: print('a line'))"
    read, write = os.pipe()
    os.close(read)  # as `| head -0` does
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_package_has_one_program_and_one_version():
    scripts = {e.name: e.value for e in importlib.metadata.entry_points(group="console_scripts")}
    if "mammoclip" not in scripts:
        pytest.skip("the package is not installed, or as it was before it had a program")
    assert scripts["mammoclip"] == "mammoclip_jax.__main__:main"
    assert run("--version").stdout.strip() == importlib.metadata.version("mammoclip_jax")
