"""Keyed hashes in place of identifiers, for data sets whose identifiers are private.

The key and the way back live in `OUT.private/` beside the data set, readable by its owner only. Whoever is given the
data set alone cannot tell whom an identifier stands for; the owner can.
"""

import csv
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Iterable

import pandas as pd

from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.shards import replace
from mammoclip_jax.errors import UserError

HASHED = ("patient", "study", "image")
_KEY_BYTES = 32


def private_folder(out: Path) -> Path:
    return out.with_name(out.name + ".private")


class Identity:
    """Hashes identifiers with the key of one data set. The same key gives the same hashes, run after run."""

    def __init__(self, out: Path):
        """Makes `OUT.private/` (mode 0700) and its key, or reads the key that is there.

        Raises:
            UserError: the key file is damaged.
        """
        self.folder = private_folder(out)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        path = self.folder / "key"
        if not path.exists():
            partial = path.with_name("key.partial")
            partial.write_text(secrets.token_hex(_KEY_BYTES))
            partial.chmod(0o600)
            replace(partial, path)
        try:
            self._key = bytes.fromhex(path.read_text().strip())
        except ValueError:
            self._key = b""
        if len(self._key) != _KEY_BYTES:
            raise UserError(f"{path} is not a key of {_KEY_BYTES} bytes in hex. Restore it, or remove {self.folder} "
                            f"and {out} and prepare anew.")

    def hash(self, kind: str, value: str) -> str:
        """16 hex digits (64 bits) for an identifier; `kind` keeps a patient "7" apart from an image "7"."""
        digest = hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256)
        return digest.hexdigest()[:16]

    def rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The manifest with hashed identifiers; `file` stays, since it never leaves the memory."""
        hashed = {name: rows[name].map(lambda value, name=name: self.hash(name, value)) for name in HASHED}
        return rows.assign(**{name: values.astype("str") for name, values in hashed.items()})

    def problem(self, problem: Problem) -> Problem:
        """The problem as the data set may show it: hashed names, and of the reason only its class."""
        image = self.hash("image", problem.image) if problem.image else ""
        return problem._replace(file=self.hash("file", problem.file), image=image, reason=problem.kind)

    def write_map(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """files.csv: (hashed file name as quarantine.csv shows it, hashed image id, file) for the owner's eyes."""
        path = self.folder / "files.csv"
        partial = path.with_name("files.csv.partial")
        with open(partial, "w", newline="") as file:
            partial.chmod(0o600)
            writer = csv.writer(file)
            writer.writerow(["file_id", "image", "file"])
            writer.writerows(rows)
        replace(partial, path)
