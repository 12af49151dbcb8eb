"""Labels to report-like text, for data sets that have tables and no reports.

Only what a radiologist reads off the image goes in: density, finding, shape, margins, morphology, distribution,
assessment. Pathology (benign, malignant) is known from the needle, and is a label, never a text. The tables list what
is there; that something else is absent is said only where the data set says so.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mammoclip_jax.data.text import label_values
from mammoclip_jax.data.text.label_values import ABSENT, FAMILIES, PRESENT
from mammoclip_jax.data.text.templating import all_attribute_prompts as all_attribute_prompts  # handed on
from mammoclip_jax.data.text.templating import attribute_prompts as attribute_prompts
from mammoclip_jax.data.text.templating import render as render

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
CONCERN = (1, 2, 3, 6, 0, 4, 5)  # the order in which the ACR atlas lets one finding's category stand for the breast

# The mass shape column also holds findings that are no masses.
MASS_NOUNS = {
    "ARCHITECTURAL_DISTORTION": "architectural distortion",
    "LYMPH_NODE": "intramammary lymph node",
    "ASYMMETRIC_BREAST_TISSUE": "asymmetric breast tissue",
    "FOCAL_ASYMMETRIC_DENSITY": "focal asymmetry",
}
UNCOUNTED = {"architectural distortion", "asymmetric breast tissue"}
CALCIFICATION_WORDS = {
    "LUCENT_CENTER": "lucent-centered",
    "LUCENT_CENTERED": "lucent-centered",
    "LARGE_RODLIKE": "large rod-like",
    "FINE_LINEAR_BRANCHING": "fine linear branching",
    "MILK_OF_CALCIUM": "milk of calcium",
    "ROUND_AND_REGULAR": "round regular",
}
DISTRIBUTION = {
    "CLUSTERED": "in a cluster",
    "SEGMENTAL": "in a segmental distribution",
    "LINEAR": "in a linear distribution",
    "REGIONAL": "in a regional distribution",
    "DIFFUSELY_SCATTERED": "diffusely scattered",
    "GROUPED": "in a group",
    "CLUSTER": "in a cluster",
    "DIFFUSE": "in a diffuse distribution",
    "SCATTERED": "diffusely scattered",
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
    abnormalities = _unique(_abnormality(row) for row in rows)
    where = _where(laterality, view)
    density = DENSITY.get(max(_number(row, "breast_density", "breast density") or 0 for row in rows))
    findings = " ".join([*([density] if density else []), *(f"There {_verb(f)} {f}{where}." for f in abnormalities)])
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
    abnormalities = [MIAS_FINDING[c] for c in classes if c in MIAS_FINDING]
    if abnormalities:
        findings = " ".join(f"There {_verb(f)} {f}." for f in abnormalities)
        impression = f"{_capital(_join(_bare(f) for f in abnormalities))}."
    elif "NORM" in classes:
        findings = "There is no mass, calcification, architectural distortion or asymmetry."
        impression = "Negative mammogram."
    else:
        findings = impression = ""
    return [text for text in (" ".join(filter(None, (tissue, findings))), impression) if text]


# What a breast of a category shows, where no table says which finding it was given for.
SHOWN = {
    0: "a finding that needs additional imaging",
    1: "no abnormal finding",
    2: "a benign finding",
    3: "a probably benign finding",
    4: "a suspicious finding",
    5: "a finding highly suggestive of malignancy",
    6: "a known finding",
}
DESCRIPTORS = {
    "mass": ("mass_shape", "mass_margins", "mass_density"),
    "calcification": ("calcification_type", "calcification_distribution"),
}
COUNTS = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def findings(
    labels: Mapping[str, Any], boxes: Iterable[Mapping[str, Any]] = (), laterality: str = "", view: str = ""
) -> list[str]:
    """What a radiologist would write about a breast or an image with these labels: [findings, impression].

    Args:
        labels: keys as in data/manifest.py: density "A" to "D" (or 1 to 4), birads 0 to 6, findings 0 or 1,
            mass_shape, mass_margins, mass_density, calcification_type, calcification_distribution (words or lists of
            them). A missing, empty or NaN value is unknown.
        boxes: {"label": a finding's key, ...}; they count the findings, and may carry descriptors of their own.
        laterality: "L", "R" or "".
        view: a view's name, to speak of that image alone, or "".

    A finding labelled 0 is said to be absent, an unknown one is not mentioned, and pathology never is. Returns [] where
    nothing is known, and the findings alone where neither a finding nor a category is.
    """
    where = _where(laterality, view)
    density = DENSITY.get(label_values.density_number(labels.get("density")))
    birads = label_values.birads_number(labels.get("birads"))
    boxes = list(boxes)
    drawn = [(label_values.key_of(name), item) for item in boxes for name in label_values.names_of(item)]
    flags = label_values.flags(labels, boxes)
    present, absent = label_values.present(flags), [ABSENT[key] for key in label_values.absent(flags)]
    said = [density] if density else []
    for key in present:
        said += [f"There {'are' if many else 'is'} {phrase}{where}." for phrase, many in _named(key, labels, drawn)]
    if absent:
        said.append(f"There is no {_join(absent, 'or')}{where}.")
    elif not present and flags["abnormal"] is not None and birads is None:
        said.append(f"There is {'an' if flags['abnormal'] else 'no'} abnormal finding{where}.")
    if not present and birads is not None and (birads != 1 or not absent):
        said.append(f"There is {SHOWN[birads]}{where}.")
    if not said:
        return []
    short = _join(_bare(PRESENT[key]) for key in present)
    summary = [f"{_capital(short)}{where}."] if present else []
    if birads is not None:
        summary.append(ASSESSMENT[birads])
    elif not present and flags["abnormal"] == 0:
        summary.append("Negative mammogram.")
    elif absent and not present:
        summary.append(f"No {_join(absent, 'or')}{where}.")
    return [" ".join(said), *([" ".join(summary)] if summary else [])]


def _named(key: str, labels: Mapping[str, Any], drawn: Sequence[tuple[str, Mapping]]) -> list[tuple[str, bool]]:
    """The noun phrases of a finding, alike ones counted; and whether the phrase is a plural."""
    items = [item for label, item in drawn if label == key or label in FAMILIES.get(key, ())]
    kind = "calcification" if "calcification" in key else key
    own = DESCRIPTORS.get(kind, ())
    if len(items) < 2:  # what the labels say is of the only one
        items = [{name: labels.get(name) for name in own} | {k: v for k, v in (*items, {})[0].items() if k in own}]
    phrases = [_described(key, kind, item) for item in items]
    return [_counted(phrase, phrases.count(phrase)) for phrase in dict.fromkeys(phrases)]


def _described(key: str, kind: str, item: Mapping[str, Any]) -> str:
    words = {name: _words(item.get(name)) for name in DESCRIPTORS.get(kind, ())}
    if not any(words.values()):
        return PRESENT[key]
    row = {name.replace("_", " ").replace("calcification", "calc"): "-".join(value) for name, value in words.items()}
    phrase = _abnormality(row | {"abnormality type": kind})
    return f"suspicious {phrase}" if key == "suspicious_calcification" else phrase


def _words(value: Any) -> list[str]:
    """A descriptor as the words of the CBIS-DDSM tables: "ill-defined, spiculated" is ILL_DEFINED, SPICULATED."""
    values = value if isinstance(value, (list, tuple)) else [label_values.text_of(value)]
    pieces = [piece.strip() for text in values for piece in re.split(r"[,;|/]", str(text))]
    pieces = [part for p in pieces for part in (p.split("-") if p.isupper() else [p.replace("-", "_")])]
    return [p.upper().replace(" ", "_") for p in pieces if p and p.lower() not in ("nan", "none", "unknown", "other")]


def _counted(phrase: str, count: int) -> tuple[str, bool]:
    if count == 1:
        return phrase, phrase.split(" with ")[0].split(" in ")[0].endswith("calcifications")
    number = COUNTS[count] if count < len(COUNTS) else str(count)
    if phrase == _bare(phrase):  # no article: it has no plural
        return f"{number} areas of {phrase}", True
    plural = re.sub(r"mass\b|asymmetry\b|node\b|implant\b", lambda m: PLURALS[m[0]], _bare(phrase), count=1)
    return f"{number} {plural}", True


PLURALS = {"mass": "masses", "asymmetry": "asymmetries", "node": "nodes", "implant": "implants"}


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
        not view or _text(row, "image view", "view") in ("", view)
    )


def _abnormality(row: Mapping[str, Any]) -> str:
    """One row as a noun phrase with its article: "an irregular mass with spiculated margins"."""
    if "CALC" in _text(row, "abnormality type"):
        phrase = _calcifications(row)
        distribution = [DISTRIBUTION[d] for d in _values(row, "calc distribution") if d in DISTRIBUTION]
        return " ".join([phrase, *([_join(distribution)] if distribution else [])])
    nouns, shapes = _mass(row)
    margins = [m.replace("_", "-").lower() for m in _values(row, "mass margins")]
    density = [
        f"{d}-density" if d in ("high", "equal", "low") else d.replace("_", "-")
        for d in map(str.lower, _values(row, "mass density"))
    ]
    phrase = _article(" ".join([*density, *(["-".join(shapes)] if shapes else []), nouns[0]]))
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
    if "intramammary lymph node" in nouns:  # "oval lymph node" is a node that is oval
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


def _join(words: Iterable[str], last: str = "and") -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


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
