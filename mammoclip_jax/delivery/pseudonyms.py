"""What files say of whose they are: keyed hashes in place of names, numbers and paths; UIDs only where they are asked for.

The key lies in `OUT.private/`, beside the folder and not in it, as that of a data set (`data.identity`); beside it
`sources.csv` tells its owner which files each exam was. With the key of a data set, exams and views have the ids that
they have there.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.data.identity import Identity, private_folder
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.delivery.sources import uids
from mammoclip_jax.files import whole

COLUMNS = ("exam", "file", "source", "folder")


def sources_file(out: Path) -> Path:
    """Which exam of a folder is which."""
    return private_folder(out) / "sources.csv"


class Pseudonyms:
    """Names that files may have."""

    def __init__(self, out: Path, key: str = "", plain: bool = False):
        """`key`: its file, by default that in `OUT.private/`, made where there is none; `plain`: whether UIDs are shown."""
        self._identity, self._plain, self._out = Identity(out, key), plain, out

    def fingerprint(self) -> str:
        """Of the key, which it does not tell."""
        return self._identity.hash("key", "")

    def exam(self, fields: Fields | None, name: str) -> str:
        """16 hex digits for an exam, by the study of its files; by its name, where no file of it can be read."""
        return self._identity.hash("study", fields.study) if fields else self._identity.hash("exam", name)

    def file(self, name: str) -> str:
        """16 hex digits for a file that has no name of its own."""
        return self._identity.hash("file", name)

    def inputs(self, root: Path, files: Iterable[str]) -> str:
        """16 hex digits of an exam's files: names, sizes, times of change."""
        stats = ((file, os.stat(root / file)) for file in files)
        return self._identity.hash("inputs", repr([(file, s.st_size, s.st_mtime_ns) for file, s in stats]))

    def problem(self, problem: Mapping[str, str], exam: str = "") -> dict[str, str]:
        """One of "problems" without names: of the reason its class alone."""
        found = Problem(**problem)
        shown = {"exam": exam} if exam else {}
        return shown | {
            "file": self.file(found.file),
            "stage": found.stage,
            "reason": found.kind,
            "remedy": found.remedy,
        }

    def shown(self, exam: Mapping[str, Any], name: str, images: Mapping[str, Fields], root: Path) -> dict[str, Any]:
        """An exam as files may show it: `name` is its id, and the names of views stand for their files, whose hashes are
        their "source".

        Its views, and the exam its "study", have the identifiers of the DICOM objects ("uids": "study", "series",
        "image"), hashed unless plain; of a picture, which has none, hashes of its path, or nothing.
        """
        known = {view["file"]: view["name"] for view in exam["views"]}
        entry = dict(exam) | {"exam": name}
        entry["views"] = [
            dict(view)
            | {"file": view["name"], "source": self.file(view["file"])}
            | {"uids": self._uids(images[view["file"]], root / view["file"])}
            for view in exam["views"]
        ]
        entry["breasts"] = [_renamed(breast, known) for breast in exam["breasts"]]
        entry["left_out"] = [item | {"file": self.file(item["file"])} for item in exam["left_out"]]
        studies = {view["uids"]["study"] for view in entry["views"]} - {None}
        return _renamed(entry, known) | {"study": studies.pop() if self._plain and len(studies) == 1 else name}

    def _uids(self, fields: Fields, path: Path) -> dict[str, str | None]:
        said = uids(path)
        if self._plain:
            return {part: said.get(part) or None for part in ("study", "series", "image")}
        series = self._identity.hash("series", said["series"]) if said.get("series") else None
        return {
            "study": self._identity.hash("study", fields.study),
            "series": series,
            "image": self._identity.hash("image", fields.image),
        }

    def write_sources(self, rows: Iterable[tuple[str, str, str, str]]) -> None:
        """Writes `OUT.private/sources.csv`, for its owner alone: `COLUMNS`. What it said of other exams stays."""
        rows, path = list(rows), sources_file(self._out)
        told = {exam for exam, *_ in rows} | {""}
        if path.exists():
            with open(path, encoding="utf-8", newline="") as file:
                rows += [row for row in list(csv.reader(file))[1:] if row[0] not in told]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *rows])
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(text.getvalue(), encoding="utf-8")


def _renamed(entry: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    parts = (part for part in ("files", "from") if part in entry)
    return dict(entry) | {part: [known[file] for file in entry[part]] for part in parts}
