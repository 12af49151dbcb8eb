"""Checksums of the files of a folder: whether they are still what was written, and if not, which one and why.

    FOLDER/checksums.json    {"files": {name: [bytes, CRC-32]}, "crc32": CRC-32 of "files"}

CRC-32 finds every change of up to four bytes in a row and misses others once in 4 billion; zlib computes it without the
interpreter's lock at the speed of a disk.
"""

import json
import zlib
from pathlib import Path

from mammoclip_jax.files import write_text

NAME = "checksums.json"
CHUNK = 1 << 22  # bytes


def write(folder, names=None, leave_out=()) -> None:
    """Notes the files `names` of the folder, by default all but those to `leave_out`, beside those noted before."""
    folder = Path(folder)
    noted = _read(folder) if (folder / NAME).exists() else {}
    if names is None:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names = [name for name in names if name not in leave_out]
    noted |= {name: [(folder / name).stat().st_size, crc32(folder / name)] for name in names if name != NAME}
    write_text(folder / NAME, _text(noted))


def damage(folder) -> str:
    """What is wrong with a noted file of the folder, or with the note itself; '' if nothing is.

    Lengths are compared first, since that costs no reading. Files that are not noted do not count.
    """
    folder = Path(folder)
    try:
        noted = _read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{NAME}: {'missing' if isinstance(error, FileNotFoundError) else 'not what was written'}"
    for name, (size, _) in noted.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != size:
            return f"{name}: {path.stat().st_size} bytes long, {size} were written"
    for name, (_, checksum) in noted.items():
        try:
            if crc32(folder / name) != checksum:
                return f"{name}: its content is not what was written (checksum)"
        except OSError as error:
            return f"{name}: {error}"
    return ""


def size(folder) -> int:
    """Bytes of the files noted in a folder that is not damaged."""
    return sum(size for size, _ in _read(Path(folder)).values())


def crc32(path) -> int:
    value = 0
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _text(files: dict) -> str:
    return json.dumps({"files": files, "crc32": zlib.crc32(json.dumps(files).encode())}, indent=1)


def _read(folder: Path) -> dict:
    text = (folder / NAME).read_bytes().decode()
    files = json.loads(text)["files"]
    if text != _text(files):
        raise ValueError
    return files
