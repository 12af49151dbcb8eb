"""What becomes of the sections of reports (text/sections.py), counted over the rows of a manifest or an index."""

import collections
import json

import pandas as pd


def by_section(rows: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """By "kept" and "dropped": section -> its text in each report that has it; the images of a study share a report."""
    sections: dict[str, dict[str, dict]] = {"kept": {}, "dropped": {}}
    for row in rows.itertuples():
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
    texts = {(row.study, *row.texts): set(row.sections) for row in rows.itertuples() if len(row.texts)}
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
