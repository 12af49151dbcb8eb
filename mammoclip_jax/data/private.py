"""The one way from an adapter's table to anything that is written or printed: checked, and without identities.

Whatever a private source says in words goes through here, whoever wrote its adapter: the texts, the words of labels and
boxes, views and makers. What identifies stays in memory: it goes into no file, no log and no other process.
"""

import collections
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data.image_files import as_there
from mammoclip_jax.data.manifest import SourceTable, checked, tuples
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import VENDORS, VIEWS, vendor_of, view_of
from mammoclip_jax.data.pixels.identities import Identities
from mammoclip_jax.data.pool import in_threads
from mammoclip_jax.data.text import recognise
from mammoclip_jax.data.text.deidentify import deidentify
from mammoclip_jax.data.text.recognise import Recogniser
from mammoclip_jax.errors import UserError

_THREADS = 16  # a network file system answers many at a time
_SHORT = 4  # characters; shorter identifiers ("12") also are words and measures, and identify nobody alone
_OLDEST = 90  # years; 45 CFR 164.514(b)(2)(i)(C) has all ages from there on in one
_MAKERS = {*VENDORS.values(), "other", "film", ""}


class Settled(NamedTuple):
    """A table that may be shown, but for its identifiers, which `Identity` hashes."""

    table: SourceTable
    ran: dict  # what took identities out, for dataset.json; names nobody


def settled(
    table: SourceTable, root: Path | str, headers: bool = True, recogniser: str = "", parts: bool = False
) -> Settled:
    """`table`, checked; of one whose texts are private without identities, and its columns in memory emptied of them.

    Of each study all that its tables tell, and with `headers` all that the DICOM headers of its images hold of people,
    places and numbers, is taken out of the texts of all its rows.

    Args:
        root: folder of the files.
        headers: whether to read them.
        recogniser: folder of a model that looks at the texts after the rules (text/recognise.py); "" for none.
        parts: keep the column "parts", cleaned like the texts; only the dry run reads it.

    Raises:
        UserError: as `manifest.checked`; the recogniser cannot be loaded or has nothing to do.
    """
    table = as_there(checked(table), Path(root))
    if table.public_texts and recogniser:
        raise UserError("the texts of this source are public and stay as they are: leave --recogniser out")
    if table.public_texts:
        return Settled(table, {"texts": "public"})
    known: dict[str, Identities] = collections.defaultdict(Identities)
    for row in tuples(table.rows[["patient", "study", "image", "file", "identities"]]):
        known[row.study] |= Identities(frozenset(row.identities), numbers=frozenset(_own(row)))
    model = recognise.load(recogniser) if recogniser else None
    read = _headers(table.rows, Path(table.root or root)) if headers else []
    for study, people in read:
        known[study] |= people
    ran = {
        "texts": "private",
        "rules": True,
        "tables": True,
        "headers": headers,
        "header_files": sum(people != Identities() for _, people in read),
        "recogniser": model.name if model else "",
    }
    return Settled(table._replace(rows=_without(table.rows, known, model, parts)), ran)


def _own(row) -> set[str]:
    """The identifiers of a row, as they stand and by their parts and file names."""
    given = {row.patient, row.image, row.file, row.study, *row.study.split("/")}
    return {form for value in given for form in (value, PurePosixPath(value).stem) if len(form) >= _SHORT}


def _headers(rows: pd.DataFrame, root: Path) -> list[tuple[str, Identities]]:
    """Study and identities of each DICOM file of the studies that have texts; none of files that cannot be read."""
    told = set(rows["study"][(rows["texts"].map(len) > 0) | (rows["labels"] != "{}") | (rows["boxes"] != "[]")])
    files = [
        (study, file)
        for study, file in zip(rows["study"], rows["file"])
        if study in told and file and not file.lower().endswith(dicom.PICTURES)
    ]

    def read(item: tuple[str, str]) -> tuple[str, Identities]:
        try:
            return item[0], dicom.read_identities(root / item[1])
        except (dicom.Unreadable, OSError, ValueError):
            return item[0], Identities()

    with dicom.quiet():
        found = in_threads(read, files, _THREADS)
        return list(tqdm(found, total=len(files), desc="identities", unit="file", disable=None))


def _without(rows: pd.DataFrame, known: dict[str, Identities], model: Recogniser | None, parts: bool) -> pd.DataFrame:
    """The rows as they may be shown. Equal texts of a study are worked on once."""
    done: dict[tuple[str, str], str] = {}

    def clean(study: str) -> Callable[[str], str]:
        told = known[study]
        names = told.names | {number for number in told.numbers if len(number) >= _SHORT}

        def cleaned(text: str) -> str:
            if (study, text) not in done:
                ruled = deidentify(text, names, told.places)
                done[study, text] = model.hide(ruled) if model else ruled
            return done[study, text]

        return cleaned

    cleaners = [clean(study) for study in rows["study"]]
    columns = {
        "texts": [[clean(text) for text in texts] for clean, texts in zip(cleaners, rows["texts"])],
        "sections": [[clean(name) for name in names] for clean, names in zip(cleaners, rows["sections"])],
        "labels": [_words(labels, clean) for clean, labels in zip(cleaners, rows["labels"])],
        "boxes": [_words(boxes, clean) for clean, boxes in zip(cleaners, rows["boxes"])],
        "view": [view if view in VIEWS else view_of(view) for view in rows["view"]],
        "vendor": [maker if maker in _MAKERS else vendor_of(maker) for maker in rows["vendor"]],
        "identities": [[] for _ in cleaners],
        "parts": [_words(cell, clean) if parts else "{}" for clean, cell in zip(cleaners, rows["parts"])],
    }
    return rows.assign(**{name: pd.Series(values, rows.index, rows[name].dtype) for name, values in columns.items()})


def _words(values: str, clean: Callable[[str], str]) -> str:
    """JSON whose words and long numbers are cleaned; keys stay, since the adapter chose them, and so do corners."""

    def within(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: within(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return value if key == "box" else [within(item) for item in value]
        if key == "age" and isinstance(value, (int, float)):
            return min(value, _OLDEST)
        if isinstance(value, int) and abs(value) >= 10**5:  # a record's number is one as well
            return clean(str(value))
        return clean(value) if isinstance(value, str) else value

    content = json.loads(values)
    changed = within(content)
    return values if changed == content else json.dumps(changed)
