"""What sentences of a report say of a finding: that it is there, that it is not, or nothing."""

import re
from collections.abc import Sequence

from mammoclip_jax.data.text import chest_findings, label_values, reports

# How a word that names a finding begins. "Microcalcifications" are calcifications.
_WORDS = {key: (name.replace("asymmetry", "asymmetr"),) for key, name in label_values.ABSENT.items()}
_WORDS |= {
    key: tuple(words[0].replace("calcification", f"{size}calcification") for size in ("", "micro", "macro"))
    for key, words in _WORDS.items()
    if "calcification" in key
}
FINDINGS = tuple(_WORDS)
_GENERAL = {kind: general for general, kinds in label_values.FAMILIES.items() for kind in kinds}
# What is named after these is neither seen nor denied: "which may obscure small masses", "history of a mass".
_NOT_SEEN = re.compile(
    r"\b(?:(?:obscur(?:e|es|ing)|hid(?:e|es|ing)|mask(?:s|ing)?|conceal(?:s|ing)?)\b"
    r"|(?:history|risk|detection|sensitivity)\s+(?:of|for)\b)[^.;:]*",
    re.IGNORECASE,
)


def said(sentences: Sequence[str], finding: str) -> int | None:
    """1 where a sentence affirms the finding, 0 where one denies it and none affirms it, None where none speaks of it.

    Negation is that of `reports.negated`: "no suspicious mass" denies the mass. Where the general finding is denied its
    kinds are, as no asymmetry is no focal asymmetry.

    Args:
        finding: one of FINDINGS, one of `chest_findings`, or another name, which is looked for as it is.
    """
    if finding in chest_findings.FINDINGS:
        return chest_findings.said(sentences, finding)
    found = {_said(_NOT_SEEN.sub("", sentence), finding) for sentence in sentences}
    for state in (1, 0):
        if state in found:
            return state
    return 0 if finding in _GENERAL and said(sentences, _GENERAL[finding]) == 0 else None


def named(sentence: str) -> bool:
    """Does a sentence speak of one of FINDINGS, whatever it says?"""
    return any(_said(sentence, finding) is not None for finding in FINDINGS)


def _said(sentence: str, finding: str) -> int | None:
    words = _WORDS.get(finding, (finding.replace("_", " "),))
    named = [word for word in words if re.search(rf"\b{re.escape(word)}", sentence, re.IGNORECASE)]
    return int(not all(reports.negated(sentence, word) for word in named)) if named else None
