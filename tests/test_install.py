"""launch/install.sh, launch/python.sh and .ci/run with stand-ins for Python: which one is taken, and what is said."""

import hashlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/bash
case "$*" in
  *version_info*) echo {version} ;;
  *hashlib*) cat > /dev/null; echo hash ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    echo "$*" >> "{calls}"
    echo "Collecting jax"; echo "  Downloading jaxlib-1.whl (83.2 MB)"; echo "  Downloading small-1.whl (3 kB)"
    echo "Installing collected packages: jax, jaxlib, small" ;;
esac
"""


@pytest.fixture
def folder(tmp_path):
    """A folder of commands, which holds no Python yet."""
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "cat", "cp", "dirname", "mkdir"):
        (path / name).symlink_to(shutil.which(name))
    return path


def command(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def python(path, version):
    """A stand-in that says it is of this version; of none: one that does not start, as a shim of pyenv."""
    calls = path.parent / "calls"
    return command(path, PYTHON.format(version=version, calls=calls) if version else "#!/bin/bash\nexit 127\n")


def run(folder, *words, **variables):
    return subprocess.run(words, env={"PATH": str(folder)} | variables, text=True, capture_output=True, timeout=60)


def find(folder, *versions, **variables):
    """The path that `find_python` prints, and "" where it fails."""
    return run(
        folder, "bash", "-c", f'source "{ROOT}/launch/python.sh"; find_python "$@"', "bash", *versions, **variables
    ).stdout.strip()


def install(folder, extras="demo", **variables):
    script = f'source "{ROOT}/launch/install.sh" {extras} && echo "PATH begins with ${{PATH%%:*}}"'
    return run(folder, "bash", "-c", script, MAMMOCLIP_VENV=str(folder.parent / "venv"), **variables)


def test_the_first_version_that_works_is_found(folder):
    assert find(folder, "3.11", "3.12", "3.13") == ""
    thirteen, _ = python(folder / "python3.13", "3.13"), python(folder / "python3.11", "")
    assert find(folder, "3.11", "3.12", "3.13") == str(thirteen)
    twelve = python(folder / "python3", "3.12")
    assert find(folder, "3.11", "3.12", "3.13") == str(twelve)
    eleven = python(folder.parent / "versions" / "3.11.9" / "bin" / "python", "3.11")
    assert find(folder, "3.11", "3.12", "3.13", PYENV_ROOT=str(folder.parent)) == str(eleven)
    command(folder / "pyenv", f"#!/bin/bash\necho '{folder.parent}'\n")
    assert find(folder, "3.11") == str(eleven)


def test_the_named_one_goes_before(folder):
    python(folder / "python3.12", "3.12")
    named = python(folder.parent / "mine", "3.12")
    assert find(folder, "3.12", PYTHON=str(named)) == str(named)
    assert find(folder, "3.13", PYTHON=str(named)) == ""


def test_an_installation_says_what_it_needs_and_how_far_it_is(folder):
    python(folder / "python3.12", "3.12")
    done = install(folder, "test,parity")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("installing into") and "for Python 3.12" in first
    for part in ("requirements", "test", "parity"):
        assert any(line.split()[0] == part and "GB" in line for line in lines)
    assert "  Downloading jaxlib-1.whl (83.2 MB)" in lines and "  unpacking 3 packages" in lines
    assert "small" not in done.stdout and lines[-1] == f"PATH begins with {folder.parent / 'venv' / 'bin'}"
    packages, weights = (folder / "calls").read_text().splitlines()
    assert f"--editable {ROOT}[test,parity]" in packages and "packages.txt" in weights
    assert install(folder, "parity").stdout.splitlines() == [lines[-1]]
    assert not any("requirements" in line for line in install(folder, "cuda13").stdout.splitlines())


def test_the_demo_ends_with_the_command_that_opens_its_page(folder, tmp_path):
    python(folder / "python3.12", "3.12")
    (folder / "realpath").symlink_to(shutil.which("realpath"))
    workdir, venv = tmp_path / "my run", tmp_path / "venv"
    done = run(folder, "bash", str(ROOT / "launch" / "demo.sh"), str(workdir), MAMMOCLIP_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout.splitlines()[-1].partition(": ")[2])
    assert command[0] == str(venv / "bin" / "python")
    assert command[1:] == ["-m", "mammoclip_jax.view", str(workdir), f"--dataset={workdir}/data/phantom"]


@pytest.mark.parametrize(
    "version, message",
    [
        ("3.10", "Python 3.11, 3.12, 3.13 is needed, .* is 3.10. Name another with PYTHON="),
        ("3.14", "Python 3.11, 3.12, 3.13 is needed, .* is 3.14"),
        ("", "does not start, or lacks the modules venv and ensurepip"),
    ],
)
def test_another_python_is_refused(folder, version, message):
    done = install(folder, PYTHON=str(python(folder / "mine", version)))
    assert done.returncode == 1 and not done.stdout
    assert re.search(message, done.stderr)


@pytest.mark.parametrize("variables", [{}, {"PYTHON": "3.13"}])
def test_without_a_python_it_is_said_what_to_do(folder, variables):
    python(folder / "python3.12", "3.12" if variables else "3.10")
    done = install(folder, **variables)
    assert done.returncode == 1 and "none is on the PATH" in done.stderr and "python3-venv" in done.stderr


def test_a_version_is_name_enough(folder):
    python(folder / "python3.11", "3.11")
    python(folder / "python3.13", "3.13")
    assert "for Python 3.13" in install(folder, PYTHON="3.13").stdout


def test_an_environment_keeps_its_python(folder):
    python(folder / "python3.12", "3.12")
    assert install(folder).returncode == 0
    eleven = python(folder / "python3.11", "3.11")
    assert "for Python 3.12" in install(folder, "test").stdout
    done = install(folder, "test", PYTHON=str(eleven))
    assert done.returncode == 1 and "was made with Python 3.12" in done.stderr and "MAMMOCLIP_VENV" in done.stderr


def test_a_failed_installation_is_none(folder):
    path = python(folder / "python3.12", "3.12")
    path.write_text(path.read_text().replace('"Collecting jax"', '"ERROR: no network" >&2; exit 3'))
    done = install(folder)
    assert done.returncode != 0 and "ERROR: no network" in done.stderr and "PATH" not in done.stdout
    assert not list((folder.parent / "venv").glob("installed-*"))


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_a_jax_that_is_there_with_its_plugin_stays(package):
    """A pin took another one, under which the CUDA plugin that is there would lie idle."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (requirement,) = [Requirement(line) for line in lines if re.match(rf"{package}\b", line)]
    assert requirement.marker is None
    assert all(requirement.specifier.contains(version) for version in ("0.10.2", "0.11.2", "0.12.0.1"))
    assert not requirement.specifier.contains("0.12.1") and not requirement.specifier.contains("0.10.1")  # not tried


@pytest.mark.parametrize(
    "changed, chosen, here, taken",
    [
        (False, "", "3.11 3.12 3.13", "3.11"),
        (True, "", "3.11 3.12 3.13", "3.13"),
        (False, "3.12", "3.11 3.12", "3.12"),
        (True, "3.12", "3.11 3.12", "3.12"),
        (True, "", "3.11", ""),
        (False, "3.13", "3.11", ""),
    ],
)
def test_the_tests_of_ci_change_their_python_with_the_pins(folder, tmp_path, changed, chosen, here, taken):
    for version in here.split():
        python(folder / f"python{version}", version)
    for name in ("mypy", "ruff", "sleep"):
        command(folder / name, "#!/bin/bash\n")
    for name in ("basename", "sha256sum"):
        (folder / name).symlink_to(shutil.which(name))
    root = tmp_path / "checkout"
    command(root / ".ci" / "run", (ROOT / ".ci" / "run").read_text())
    command(root / "launch" / "python.sh", (ROOT / "launch" / "python.sh").read_text())
    command(root / "launch" / "install.sh", "")
    command(root / "launch" / "test.sh", 'echo "$(basename "$PYTHON") $(basename "$MAMMOCLIP_VENV") $*"\n')
    pins = (ROOT / "requirements.txt").read_text()
    command(root / "tests" / "pins.txt", f"{hashlib.sha256(pins.encode()).hexdigest()}  requirements.txt\n")
    command(root / "requirements.txt", pins + "another==1\n" * changed)
    done = run(folder, "bash", str(root / ".ci" / "run"), CI_PYTHON=chosen)
    if not taken:
        assert done.returncode == 1 and "Python 3.13 is not here" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert ("requirements.txt has changed" in done.stdout) == (changed and not chosen)
    assert done.stdout.splitlines()[-3:] == [
        f"python{taken} .venv-{taken} ",
        f"python{taken} .venv-{taken} --slow --no-quick",
        "python3.11 .venv --parity --slow --no-quick -m parity",
    ]
    assert f"tests on Python {taken}" in done.stdout
