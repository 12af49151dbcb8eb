"""Compiles the C++ passes for this machine, once: python -m mammoclip_jax.models.native.build

The library lies in MAMMOCLIP_NATIVE (~/.cache/mammoclip_jax/native), under the hash of the source, jax's version and the
processor's instructions, so that machines that share a home each find their own. Exit status 3: there is no compiler.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from mammoclip_jax.errors import UserError

SOURCE = Path(__file__).parent / "mbconv.cc"
# Strict arithmetic but for a * b + c in one instruction. Not -Ofast: infinities must stay what they are.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
QUIET = ("-Wno-psabi", "-Wno-attributes")
NO_COMPILER = 3
REMEDY = "python -m mammoclip_jax.models.native.build"


def compiler() -> str | None:
    """CXX, or the first C++ compiler that is here."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "c++"))), None)


def library() -> Path:
    """Where this machine's library is, or would be."""
    folder = os.environ.get("MAMMOCLIP_NATIVE") or "~/.cache/mammoclip_jax/native"
    said = [SOURCE.read_text(), jax.__version__, " ".join(FLAGS), platform.machine(), _instructions()]
    return Path(folder).expanduser() / f"mbconv-{hashlib.sha256('|'.join(said).encode()).hexdigest()[:16]}.so"


def build(path: Path | None = None, flags: Sequence[str] = ()) -> Path:
    """Compiles the library to `path`, by default where `library` says, with further flags; does not ask what is there.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    found, path = compiler(), path or library()
    if found is None:
        raise UserError("no C++ compiler (g++, clang++, or CXX) is on the PATH: the native passes cannot be built.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    command = [found, *FLAGS, *QUIET, *flags, f"-isystem{jax.ffi.include_dir()}", str(SOURCE), "-o", str(part)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    part.replace(path)
    return path


def _instructions() -> str:
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        flags = None
    return flags[1] if flags else ""


def main() -> int:
    """The command."""
    path = library()
    if not path.exists():
        if compiler() is None:
            print("native passes: no C++ compiler is here; the package runs without them.", file=sys.stderr)
            return NO_COMPILER
        try:
            build(path)
        except UserError as error:
            print(f"native passes: {error}", file=sys.stderr)
            return 2
    print(f"native passes: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
