"""What sentences of a chest radiograph's report say of the 14 observations of CheXpert (Irvin et al. 2019).

A rule set of our own in the manner of CheXpert's labeller: a mention is affirmed, denied (`reports.negated`) or uncertain,
and an uncertain one says nothing. "Likely" and "probable" affirm. It was written for English reports of the form that
MIMIC-CXR has, and has not been measured against readers.
"""

import re
from collections.abc import Sequence

from mammoclip_jax.data.text import reports

_HEART = ("heart", "heart size", "cardiac silhouette", "cardiomediastinal silhouette")
_DEGREES = (
    "",
    *(f"{word} " for word in ("mildly", "slightly", "moderately", "markedly", "severely", "greatly", "grossly")),
)
# Key of the manifest's labels -> how words that name it begin.
WORDS = {
    "enlarged_cardiomediastinum": (
        "enlarged cardiomediastin",
        "cardiomediastinal enlargement",
        "enlargement of the cardiomediastin",
        "enlarged mediastin",
        "mediastinal enlargement",
        "mediastinal widening",
        "widened mediastin",
        "widening of the mediastin",
        "widening of the superior mediastin",
    ),
    "cardiomegaly": (
        "cardiomegaly",
        "enlarged heart",
        "enlarged cardiac",
        "cardiac enlargement",
        "enlargement of the cardiac",
        "enlargement of the heart",
        *(
            f"{subject} {verb} {degree}enlarged"
            for subject in _HEART
            for verb in ("is", "remains")
            for degree in _DEGREES
        ),
    ),
    "lung_opacity": ("opacit", "opacification", "infiltrate", "airspace disease", "air-space disease"),
    "lung_lesion": (
        "nodule",
        "lung mass",
        "pulmonary mass",
        "hilar mass",
        "lobe mass",
        "lung lesion",
        "cavitary lesion",
        "tumor",
        "tumour",
        "carcinoma",
        "metasta",
    ),
    "edema": (
        "edema",
        "oedema",
        "vascular congestion",
        "pulmonary congestion",
        "heart failure",
        "fluid overload",
        "volume overload",
    ),
    "consolidation": ("consolidation", "consolidated"),
    "pneumonia": ("pneumonia", "bronchopneumonia", "infectious process"),
    "atelectasis": ("atelecta", "lobar collapse", "lobe collapse"),
    "pneumothorax": ("pneumothora", "hydropneumothora"),
    "pleural_effusion": ("effusion", "pleural fluid", "hydrothora"),
    "pleural_other": (
        "pleural thickening",
        "pleural plaque",
        "pleural scarring",
        "fibrothorax",
        "pleural calcification",
    ),
    "fracture": ("fracture", "broken rib"),
    "support_devices": (
        "endotracheal",
        "et tube",
        "ett",
        "nasogastric",
        "enteric tube",
        "ng tube",
        "orogastric",
        "feeding tube",
        "tracheostomy",
        "picc",
        "central venous catheter",
        "central line",
        "port-a-cath",
        "hemodialysis catheter",
        "dialysis catheter",
        "swan-ganz",
        "chest tube",
        "pigtail catheter",
        "pacemaker",
        "pacer",
        "icd lead",
        "defibrillator",
        "prosthetic valve",
        "valve replacement",
        "sternal wire",
        "sternotomy wire",
        "balloon pump",
    ),
}
NO_FINDING = "no_finding"
FINDINGS = (NO_FINDING, *WORDS)
# That all is well with the heart, the mediastinum or the lungs denies without a "no".
_NORMAL = r"\b[^.;:]*\b(?:normal|unremarkable|not\s+enlarged|within\s+(?:the\s+)?(?:normal\s+)?limits)\b"
_CLEAR = r"\blungs?\b[^.;:,]*\b(?:is|are|remains?)\s+(?:otherwise\s+|grossly\s+|essentially\s+)?clear\b"
_DENIES = {
    "cardiomegaly": re.compile(
        rf"\b(?:heart|cardiac|cardiomediastinal)(?:\s+(?:size|silhouette|contour))?{_NORMAL}", re.I
    ),
    "enlarged_cardiomediastinum": re.compile(
        rf"\b(?:mediastinal|cardiomediastinal|hilar\s+and\s+mediastinal)\s+(?:silhouette|contour){_NORMAL}", re.I
    ),
    **dict.fromkeys(("lung_opacity", "consolidation", "edema"), re.compile(_CLEAR, re.I)),
}
_WELL = re.compile(
    r"\bno\s+(?:acute|active|significant)\s+(?:\w+\s+)?(?:process|abnormalit|disease|finding)|\bnormal\s+chest\b"
    r"|\bno\s+acute\s+(?:cardiopulmonary|intrathoracic|cardiac\s+or\s+pulmonary)\b|\bunremarkable\s+(?:chest|study|exam)",
    re.I,
)
_UNCERTAIN = re.compile(
    r"\b(?:possibl[ey]|may|might|could|questionabl[ey]|question\s+of|equivocal|suspicio\w+|suspected|concern(?:ing)?\s+for"
    r"|suggest\w*|cannot|can't|difficult\s+to|versus|vs|differential|if\s+clinical|evaluate\s+for|assess\s+for"
    r"|unclear|uncertain|not\s+(?:entirely\s+|completely\s+)?exclude\w*)\b|\?",
    re.I,
)
# "Evaluate for pneumonia", "history of lung cancer", "prior fracture": neither seen nor denied.
_NOT_SEEN = re.compile(
    r"\b(?:history|risk|status\s+post|s/p|evaluat\w+|assess\w*|rule)\s+(?:of|for|out)\b[^.;:]*", re.I
)
_CLAUSES = re.compile(r"[;:]|\b(?:but|however|although|though|while|whereas)\b|,\s*(?=(?:which|there)\b)", re.I)


def said(sentences: Sequence[str], finding: str) -> int | None:
    """1 where a sentence affirms the finding, 0 where one denies it and none affirms it, None where none speaks of it.

    "no_finding" is 0 where any other finding but support devices is affirmed, and 1 where none is affirmed or uncertain
    and a sentence says that there is nothing ("no acute cardiopulmonary process") or two findings at least are denied.

    Args:
        finding: one of FINDINGS.
    """
    if finding == NO_FINDING:
        return _nothing(sentences)
    states = {state for sentence in sentences for state in _states(sentence, finding)}
    return next((state for state in (1, 0) if state in states), None)


def _nothing(sentences: Sequence[str]) -> int | None:
    pathologies = [name for name in WORDS if name != "support_devices"]
    found = [{state for sentence in sentences for state in _states(sentence, name)} for name in pathologies]
    if any(1 in states for states in found):
        return 0
    if any(None in states for states in found):
        return None
    well = any(_WELL.search(sentence) for sentence in sentences)
    return 1 if well or sum(0 in states for states in found) > 1 else None


def _states(sentence: str, finding: str) -> set[int | None]:
    """What the clauses of a sentence say: 1, 0, or None for an uncertain mention; nothing where none names it."""
    states: set[int | None] = set()
    sentence = _NOT_SEEN.sub("", sentence)
    pattern = _DENIES.get(finding)
    if pattern and pattern.search(sentence):
        states.add(0)
    for word in WORDS[finding]:
        if not re.search(rf"\b{re.escape(word)}", sentence, re.I):
            continue
        if reports.negated(sentence, word):
            states.add(0)
            continue
        clauses = [part for part in _CLAUSES.split(sentence) if re.search(rf"\b{re.escape(word)}", part, re.I)]
        states |= {None if _UNCERTAIN.search(clause) else 1 for clause in clauses if not reports.negated(clause, word)}
    return states
