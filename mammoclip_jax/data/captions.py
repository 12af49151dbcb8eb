"""Labels to report-like text, for data sets that have tables and no reports.

Only what a radiologist reads off the image goes in: density, finding, shape, margins, morphology, distribution,
assessment. Pathology (benign, malignant) is known from the needle, and is a label, never a text. The tables list what
is there; that something else is absent is said only where the data set says so.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

DENSITY = {
    1: "The breast is almost entirely fatty.",
    2: "There are scattered areas of fibroglandular density.",
    3: "The breast is heterogeneously dense.",
    4: "The breast is extremely dense.",
}
ASSESSMENT = {
    0: "BI-RADS 0: incomplete, additional imaging evaluation is needed.",
    1: "BI-RADS 1: negative.",
    2: "BI-RADS 2: benign finding.",
    3: "BI-RADS 3: probably benign finding, short interval follow-up is suggested.",
    4: "BI-RADS 4: suspicious abnormality, biopsy should be considered.",
    5: "BI-RADS 5: highly suggestive of malignancy.",
    6: "BI-RADS 6: known malignancy.",
}
CONCERN = (1, 2, 3, 6, 0, 4, 5)      # the order in which the ACR atlas lets one finding's category stand for the breast

# The mass shape column also holds findings that are no masses.
MASS_NOUNS = {
    "ARCHITECTURAL_DISTORTION": "architectural distortion",
    "LYMPH_NODE": "intramammary lymph node",
    "ASYMMETRIC_BREAST_TISSUE": "asymmetric breast tissue",
    "FOCAL_ASYMMETRIC_DENSITY": "focal asymmetry",
}
UNCOUNTED = {"architectural distortion", "asymmetric breast tissue"}
CALCIFICATION_WORDS = {
    "LUCENT_CENTER": "lucent-centered", "LUCENT_CENTERED": "lucent-centered", "LARGE_RODLIKE": "large rod-like",
    "FINE_LINEAR_BRANCHING": "fine linear branching", "MILK_OF_CALCIUM": "milk of calcium",
    "ROUND_AND_REGULAR": "round regular",
}
DISTRIBUTION = {
    "CLUSTERED": "in a cluster", "SEGMENTAL": "in a segmental distribution", "LINEAR": "in a linear distribution",
    "REGIONAL": "in a regional distribution", "DIFFUSELY_SCATTERED": "diffusely scattered",
}
SIDE = {"L": "left", "R": "right", "": ""}
VIEW = {"CC": "craniocaudal", "MLO": "mediolateral oblique"}

MIAS_TISSUE = {
    "F": "The breast is almost entirely fatty.",
    "G": "The breast tissue is fatty and glandular.",
    "D": "The breast tissue is dense and glandular.",
}
MIAS_FINDING = {
    "CALC": "calcifications",
    "CIRC": "a well-defined, circumscribed mass",
    "SPIC": "a spiculated mass",
    "MISC": "an ill-defined mass",
    "ARCH": "architectural distortion",
    "ASYM": "asymmetry",
}


def cbis_ddsm(rows: pd.DataFrame | Iterable[Mapping[str, Any]], laterality: str, view: str) -> list[str]:
    """Captions of a breast from its rows of the official case description tables (mass and calcification alike).

    `laterality`: "L", "R" or ""; rows of the other breast are left out. `view`: "CC" or "MLO" describes that image
    alone; "" describes the breast, an abnormality seen in both views once.
    Returns the findings (density, abnormalities), then the impression (abnormalities in short, BI-RADS category);
    an empty list where no row is left.
    """
    rows = [row for row in _records(rows) if _matches(row, laterality, view)]
    if not rows:
        return []
    found = _unique(_abnormality(row) for row in rows)
    where = _where(laterality, view)
    density = DENSITY.get(max((_number(row, "breast_density", "breast density") or 0 for row in rows)))
    findings = " ".join([*([density] if density else []), *(f"There {_verb(f)} {f}{where}." for f in found)])
    short = _join(_unique(_short(row) for row in rows))
    categories = [c for c in (_number(row, "assessment") for row in rows) if c in ASSESSMENT]
    impression = f"{_capital(short)}{where}."
    if categories:
        impression += " " + ASSESSMENT[max(categories, key=CONCERN.index)]
    return [findings, impression]


def mias(row: Mapping[str, Any] | pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[str]:
    """Captions of one mini-MIAS film from its row, or rows, of Info.txt.

    Keys: "tissue" (F, G or D) and "finding" (CALC, CIRC, SPIC, MISC, ARCH, ASYM or NORM). A NORM film is the only one
    of which absence is said. No side: which film of a pair is the left one is not known for sure.
    Returns the findings, then the impression; an empty list where neither is known.
    """
    rows = _records([row] if isinstance(row, Mapping | pd.Series) else row)
    tissue = next((MIAS_TISSUE[t] for t in (_text(r, "tissue") for r in rows) if t in MIAS_TISSUE), "")
    classes = _unique(_text(row, "finding") for row in rows)
    found = [MIAS_FINDING[c] for c in classes if c in MIAS_FINDING]
    if found:
        findings = " ".join(f"There {_verb(f)} {f}." for f in found)
        impression = f"{_capital(_join(_bare(f) for f in found))}."
    elif "NORM" in classes:
        findings = "There is no mass, calcification, architectural distortion or asymmetry."
        impression = "Negative mammogram."
    else:
        findings = impression = ""
    return [text for text in (" ".join(filter(None, (tissue, findings))), impression) if text]


def _records(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)


def _text(row: Mapping[str, Any], *names: str) -> str:
    """The first of the columns that the row has, upper case; "" for a missing value."""
    value = next((row[name] for name in names if name in row), None)
    return "" if value is None or pd.isna(value) else str(value).strip().upper().replace("N/A", "")


def _number(row: Mapping[str, Any], *names: str) -> int | None:
    text = _text(row, *names)
    return int(float(text)) if text else None


def _matches(row: Mapping[str, Any], laterality: str, view: str) -> bool:
    side = _text(row, "left or right breast", "laterality")[:1]
    return (not laterality or not side or side == laterality) and (
        not view or _text(row, "image view", "view") in ("", view))


def _abnormality(row: Mapping[str, Any]) -> str:
    """One row as a noun phrase with its article: "an irregular mass with spiculated margins"."""
    if "CALC" in _text(row, "abnormality type"):
        phrase = _calcifications(row)
        distribution = [DISTRIBUTION[d] for d in _values(row, "calc distribution") if d in DISTRIBUTION]
        return " ".join([phrase, *([_join(distribution)] if distribution else [])])
    nouns, shapes = _mass(row)
    margins = [m.replace("_", "-").lower() for m in _values(row, "mass margins")]
    phrase = _article(" ".join([*(["-".join(shapes)] if shapes else []), nouns[0]]))
    with_ = [*nouns[1:], *([f"{_join(margins)} margins"] if margins else [])]
    return f"{phrase} with {_join(with_)}" if with_ else phrase


def _short(row: Mapping[str, Any]) -> str:
    """The abnormality by name alone: "mass", "calcifications", "architectural distortion"."""
    return "calcifications" if "CALC" in _text(row, "abnormality type") else _mass(row)[0][0]


def _mass(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Nouns (a mass first, where there is one) and shape adjectives of a row of the mass tables."""
    values = _values(row, "mass shape")
    shapes = [v.replace("_", " ").lower() for v in values if v not in MASS_NOUNS]
    nouns = [MASS_NOUNS[v] for v in values if v in MASS_NOUNS]
    if "intramammary lymph node" in nouns:               # "oval lymph node" is a node that is oval
        return nouns, shapes
    return (["mass", *nouns], shapes) if shapes or not nouns else (nouns, [])


def _calcifications(row: Mapping[str, Any]) -> str:
    words = [CALCIFICATION_WORDS.get(v, v.replace("_", " ").lower()) for v in _values(row, "calc type")]
    return f"{_join(words)} calcifications".strip()


def _values(row: Mapping[str, Any], name: str) -> list[str]:
    return _unique(_text(row, name).split("-"))


def _where(laterality: str, view: str) -> str:
    side, projection = SIDE.get(laterality, ""), VIEW.get(view, "")
    return (f" in the {side} breast" if side else "") + (f" on the {projection} view" if projection else "")


def _unique(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _join(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _article(phrase: str) -> str:
    if phrase in UNCOUNTED:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _bare(phrase: str) -> str:
    return phrase.removeprefix("a ").removeprefix("an ")


def _verb(phrase: str) -> str:
    return "are" if "calcifications" in phrase else "is"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
