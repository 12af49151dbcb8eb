"""Keyed hashes in place of identifiers, for data sets whose identifiers are private.

The key lives in `OUT.private/` beside the data set, readable by its owner only, or in a file that several data sets of
a project share. No list of identifiers is written anywhere: the owner, who has the key and the source, can hash again
and so tell what a hash stands for; whoever is given the data set alone cannot.
"""

import hashlib
import hmac
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import pandas as pd

from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.errors import UserError

HASHED = ("patient", "study", "image")
_KEY_BYTES = 32


def private_folder(out: Path) -> Path:
    return out.with_name(out.name + ".private")


class Identity:
    """Hashes identifiers. The same key gives the same hashes, run after run and data set after data set."""

    def __init__(self, out: Path, key: Path | str = ""):
        """Reads the key file, by default the one in `OUT.private/`; makes it (for the owner only) where there is none.

        Raises:
            UserError: the key file is damaged.
        """
        path = Path(key) if key else private_folder(out) / "key"
        if not path.exists():
            _make_key(path)
        try:
            self._key = bytes.fromhex(path.read_text().strip())
        except ValueError:
            self._key = b""
        if len(self._key) != _KEY_BYTES:
            raise UserError(
                f"{path} is not a key of {_KEY_BYTES} bytes in hex. Restore it, or remove it and {out} and "
                "prepare anew."
            )

    def hash(self, kind: str, value: str) -> str:
        """16 hex digits (64 bits) for an identifier; `kind` keeps a patient "7" apart from an image "7"."""
        digest = hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256)
        return digest.hexdigest()[:16]

    def rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The manifest with hashed identifiers; `file` stays, since it never leaves the memory."""
        hashed = {name: rows[name].map(lambda value, name=name: self.hash(name, value)) for name in HASHED}
        return rows.assign(**{name: values.astype("str") for name, values in hashed.items()})

    def problem(self, problem: Problem) -> Problem:
        """The problem as the data set may show it: hashed names, the class of the reason, the line of the table."""
        file, image = (
            self.hash(kind, name) if name else "" for kind, name in (("file", problem.file), ("image", problem.image))
        )
        return problem._replace(file=file, image=image, reason=problem.kind, row=line(problem.row))


def _make_key(path: Path) -> None:
    """A new key at `path`, for its owner only, unless another process has put one there in the meantime."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as file:
        file.write(secrets.token_hex(_KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)  # whole, and only where there is none
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                shutil.copy(file.name, path)


def line(row: str) -> str:
    """From "table.csv:17" to "line 17": a table may be named after somebody."""
    return f"line {row.rpartition(':')[2]}" if row else ""


def shown_options(provenance: dict, identity: Identity | None) -> dict:
    """The provenance as the data set may show it: an option's value may be a path that names somebody."""
    if identity is None or "options" not in provenance:
        return provenance
    return provenance | {
        "options": {name: identity.hash("option", value) for name, value in provenance["options"].items()}
    }
