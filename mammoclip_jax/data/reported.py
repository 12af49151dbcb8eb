"""What becomes of reports: their sections (text/sections.py), counted over the rows of a manifest or an index; and the
reports of breasts without an image, which are kept for training as texts alone (batches/unpaired.py)."""

import collections
import json
from pathlib import Path

import pandas as pd

from mammoclip_jax.data.manifest import tuples
from mammoclip_jax.data.store.side_tables import write_frame

ALONE = "texts"  # the table of a data set folder; there is none without such reports
_COLUMNS = ["dataset", "patient", "study", "image", "laterality", "view", "split", "texts", "sections", "labels"]


def by_section(rows: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """By "kept" and "dropped": section -> its text in each report that has it; the images of a study share a report."""
    sections: dict[str, dict[str, dict]] = {"kept": {}, "dropped": {}}
    for row in tuples(rows[["study", "texts", "sections", "parts"]]):
        parts = {what: list(named.items()) for what, named in json.loads(row.parts).items()}
        for what, named in ({"kept": list(zip(row.sections, row.texts))} | parts).items():
            for name, text in named:
                sections[what].setdefault(name, {})[row.study, text] = None
    return {
        what: {name: [text for _, text in texts] for name, texts in sorted(named.items())}
        for what, named in sections.items()
    }


def lacking(rows: pd.DataFrame) -> dict[str, int]:
    """How many reports have an impression and no findings ("findings"), and neither of them ("both"), so that all their
    sections became texts."""
    told = tuples(rows[["study", "texts", "sections"]])
    texts = {(row.study, *row.texts): set(row.sections) for row in told if len(row.texts)}
    tally = collections.Counter(
        "findings" if "impression" in sections else "both"
        for sections in texts.values()
        if not sections & {"findings", "caption"}
    )
    return {"findings": tally["findings"], "both": tally["both"]}


def counts(rows: pd.DataFrame) -> dict:
    """Of whole reports, for dataset.json: kept and dropped {section: reports}, lacking (see above); {} without any.

    Sections are known by the words of text/sections.py: nothing of a report is in it.
    """
    whole = rows[rows["parts"] != "{}"]
    if whole.empty:
        return {}
    sections = by_section(whole)
    return {what: {name: len(texts) for name, texts in named.items()} for what, named in sections.items()} | {
        "lacking": lacking(whole)
    }


def without_file(told: pd.DataFrame, rows: pd.DataFrame) -> str:
    """All that the tables say of rows whose file is missing, as one text; "" where there are none with texts.

    Args:
        told: the manifest.
        rows: those of it whose file is there.
    """
    absent = told.loc[~told["image"].isin(rows["image"]) & (told["texts"].map(len) > 0), _COLUMNS]
    return "" if absent.empty else absent.to_json(orient="split")


def alone(told: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """The rows with texts of breasts of which no image is in the index, each text of a breast once."""
    breast = ["patient", "study", "laterality"]
    there = set(index[breast].itertuples(index=False, name=None))
    lone = [key not in there for key in told[breast].itertuples(index=False, name=None)]
    found = told[pd.Series(lone, told.index, dtype=bool) & ~told["image"].isin(index["image"])]
    found = found.loc[found["texts"].map(len) > 0, _COLUMNS]
    words = found[breast].assign(texts=found["texts"].map(json.dumps))
    return found[~words.duplicated()].reset_index(drop=True)


def write_alone(out: Path, told: pd.DataFrame, index: pd.DataFrame) -> None:
    """Keeps `alone` of the manifest, its identifiers as the index has them, in a data set's folder."""
    found = alone(told, index)
    if found.empty:
        (out / f"{ALONE}.parquet").unlink(missing_ok=True)
    else:
        write_frame(out, ALONE, found)
