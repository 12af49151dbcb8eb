"""Reports of phantom exams: a small grammar of the phrases that mammography reports use, negation included.

Wording varies at random, facts never do: each side's findings state presence or absence of a mass and of
calcifications in so many words, and position words follow from where the lesion was drawn.
"""

import numpy as np

from mammoclip_jax.data.phantom.exam import FIELD_MM, Breast, Exam
from mammoclip_jax.data.phantom.lesions import Lesion

SIDES = {"R": "right", "L": "left"}
DENSITY = {
    "A": (
        "The breasts are almost entirely fatty.",
        "The breast tissue is almost entirely fatty.",
        "Breast composition: almost entirely fat (density A).",
    ),
    "B": (
        "There are scattered areas of fibroglandular density.",
        "Scattered fibroglandular densities are present.",
        "Breast composition: scattered fibroglandular tissue (density B).",
    ),
    "C": (
        "The breasts are heterogeneously dense, which may obscure small masses.",
        "The breast tissue is heterogeneously dense.",
        "Breast composition: heterogeneously dense (density C).",
    ),
    "D": (
        "The breasts are extremely dense, which lowers the sensitivity of mammography.",
        "The breast tissue is extremely dense.",
        "Breast composition: extremely dense (density D).",
    ),
}
NO_MASS = (
    "No mass is seen in the {side} breast.",
    "There is no mass in the {side} breast.",
    "No suspicious mass is identified in the {side} breast.",
    "No dominant mass in the {side} breast.",
    "The {side} breast shows no mass.",
    "Negative for mass on the {side}.",
    "No evidence of a mass in the {side} breast.",
)
NO_CALCIFICATION = (
    "No suspicious calcifications in the {side} breast.",
    "There are no suspicious calcifications in the {side} breast.",
    "No suspicious microcalcifications are seen on the {side}.",
    "The {side} breast is without calcifications.",
    "No calcifications are identified on the {side}.",
    "No grouped calcifications are seen in the {side} breast.",
)
NEITHER = (
    "No mass or suspicious calcifications in the {side} breast.",
    "There is no suspicious mass or calcification in the {side} breast.",
    "The {side} breast shows neither a mass nor calcifications.",
    "No masses and no suspicious calcifications are seen on the {side}.",
)
NOTHING_ELSE = (
    "There is no architectural distortion.",
    "No architectural distortion.",
    "No architectural distortion or skin thickening is seen.",
    "The skin and nipple are unremarkable.",
    "No nipple retraction.",
    "No axillary adenopathy is seen.",
)
MASS = (
    "There is {a_form} mass with {pattern} margins{size} in the {place} of the {side} breast at {depth} depth.",
    "{A_form} mass with {pattern} margins{size} is seen in the {place} of the {side} breast, {depth} depth.",
    "In the {place} of the {side} breast there is {a_form}, {pattern} mass{size} at {depth} depth.",
    "The {side} breast shows {a_form} mass{size} in the {place}, {depth} depth; its margins are {pattern}.",
    "A mass{size} is present in the {place} of the {side} breast at {depth} depth. It is {form} and {pattern}.",
)
CALCIFICATION = (
    "There are {form} calcifications in {a_pattern} distribution in the {place} of the {side} breast at {depth} depth.",
    "{Form} calcifications with {pattern} distribution are seen in the {place} of the {side} breast, {depth} depth.",
    "In the {place} of the {side} breast there is a cluster of {form} calcifications at {depth} depth, "
    "{pattern} in distribution.",
    "The {side} breast shows {pattern} {form} calcifications in the {place} at {depth} depth.",
    "{Form} microcalcifications, {pattern} in distribution, are present in the {place} of the {side} breast, "
    "{depth} depth.",
)
SKIN_MARKER = (  # in sets with a shortcut, see skin_marker.py
    "A skin marker is seen over the {side} breast.",
    "There is a metallic skin marker on the {side} breast.",
    "A ring-shaped skin marker projects over the {side} breast.",
    "Skin marker on the {side} breast.",
)
NO_SKIN_MARKER = (
    "No skin marker on the {side} breast.",
    "No skin marker is seen over the {side} breast.",
    "There is no skin marker on the {side} breast.",
)
NORMAL_IMPRESSION = (
    "No mammographic evidence of malignancy.",
    "No evidence of malignancy in the {side} breast.",
    "Negative {side} mammogram.",
    "Normal {side} breast.",
    "No suspicious finding in the {side} breast.",
)
# By category: how a finding is summed up. "{what}" is the finding, "{side}" the breast.
FINDING_IMPRESSION = {
    2: (
        "Benign {side} breast {what}.",
        "{What} in the {side} breast, benign.",
        "{Side} breast {what}, benign finding.",
    ),
    3: (
        "Probably benign {side} breast {what}.",
        "{What} in the {side} breast, probably benign.",
        "{Side} breast {what}, likely benign; short interval follow-up.",
    ),
    4: (
        "Suspicious {side} breast {what}.",
        "{What} in the {side} breast, suspicious.",
        "{Side} breast {what}; biopsy should be considered.",
    ),
    5: (
        "{Side} breast {what}, highly suggestive of malignancy.",
        "Highly suspicious {side} breast {what}.",
        "{What} in the {side} breast, highly suggestive of malignancy; biopsy is recommended.",
    ),
}
CATEGORY = ("BI-RADS {n}.", "BI-RADS category {n}.", "Assessment: BI-RADS {n}.")


def position(lesion: Lesion) -> tuple[str, str]:
    """(place, depth) in words, e.g. ("upper outer quadrant", "posterior")."""
    vertical = "" if abs(lesion.upper) < 0.12 else ("upper" if lesion.upper > 0 else "lower")
    horizontal = "" if abs(lesion.outer) < 0.12 else ("outer" if lesion.outer > 0 else "inner")
    depth = ("posterior", "middle", "anterior")[min(int(lesion.depth * 3), 2)]
    if vertical and horizontal:
        return f"{vertical} {horizontal} quadrant", depth
    if vertical or horizontal:
        return f"{vertical or horizontal} central part", depth
    return "retroareolar region" if depth == "anterior" else "central part", depth


def findings(exam: Exam, laterality: str) -> str:
    """The FINDINGS about one breast; the same text at every call."""
    breast, rng = exam.breasts[laterality], _stream(exam, laterality, 0)
    side = SIDES[laterality]
    sentences = [_finding(lesion, side, rng) for lesion in breast.lesions]
    if not breast.lesions and rng.random() < 0.35:
        sentences.append(_choose(rng, NEITHER).format(side=side))
    else:
        absent = [
            phrases
            for label, phrases in (("mass", NO_MASS), ("calcification", NO_CALCIFICATION))
            if not breast.has(label)
        ]
        sentences += [_choose(rng, phrases).format(side=side) for phrases in absent]
    if rng.random() < 0.3:
        sentences.reverse()
    if rng.random() < 0.6:
        sentences.append(_choose(rng, NOTHING_ELSE))
    return " ".join(sentences)


def marker(exam: Exam, laterality: str) -> str:
    """The sentence on the ring on the skin, or that there is none, in a set that has such; else ""."""
    if not exam.parameters.shortcut:
        return ""
    phrases = SKIN_MARKER if exam.breasts[laterality].skin_marker else NO_SKIN_MARKER
    return _choose(_stream(exam, laterality, 3), phrases).format(side=SIDES[laterality])


def impression(exam: Exam, laterality: str) -> str:
    """The IMPRESSION of one breast: what was found, if anything, and its BI-RADS category."""
    breast, rng = exam.breasts[laterality], _stream(exam, laterality, 1)
    category = _choose(rng, CATEGORY).format(n=breast.birads)
    return f"{_summary(breast, SIDES[laterality], rng)} {category}"


def density(exam: Exam) -> str:
    """The sentence on breast composition."""
    return _choose(exam.stream(_STREAM, 2), DENSITY[exam.habitus.density])


def texts(exam: Exam, laterality: str) -> tuple[list[str], list[str]]:
    """What the report says of one breast: (texts, their section names). A ring on the skin is one of the findings."""
    body = f"{density(exam)} {findings(exam, laterality)} {marker(exam, laterality)}".rstrip()
    return [body, impression(exam, laterality)], ["findings", "impression"]


def report(exam: Exam) -> str:
    """The report of the exam as it would be filed."""
    worst = max(breast.birads for breast in exam.breasts.values())
    return "\n".join(
        [
            f"EXAM: Bilateral screening mammogram, patient {exam.patient} (computer phantom).",
            "TECHNIQUE: Craniocaudal and mediolateral oblique views of both breasts.",
            "",
            "FINDINGS:",
            density(exam),
            *(
                f"{SIDES[side].capitalize()} breast: {findings(exam, side)} {marker(exam, side)}".rstrip()
                for side in "RL"
            ),
            "",
            "IMPRESSION:",
            *(f"{SIDES[side].capitalize()}: {impression(exam, side)}" for side in "RL"),
            f"Overall assessment: BI-RADS {worst}.",
            "",
        ]
    )


_STREAM = 10  # of exam.stream: the wording


def _stream(exam: Exam, laterality: str, part: int) -> np.random.Generator:
    return exam.stream(_STREAM, part, "RL".index(laterality))


def _choose(rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
    return phrases[int(rng.integers(len(phrases)))]


def _finding(lesion: Lesion, side: str, rng: np.random.Generator) -> str:
    place, depth = position(lesion)
    size = f" measuring {round(2 * lesion.radius * FIELD_MM)} mm" if rng.random() < 0.4 else ""
    words = {
        "form": lesion.form,
        "pattern": lesion.pattern,
        "a_form": _article(lesion.form),
        "a_pattern": _article(lesion.pattern),
    }
    words |= {"Form": lesion.form.capitalize(), "A_form": words["a_form"].capitalize()}
    phrases = MASS if lesion.label == "mass" else CALCIFICATION
    return _choose(rng, phrases).format(place=place, depth=depth, side=side, size=size, **words)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _summary(breast: Breast, side: str, rng: np.random.Generator) -> str:
    if not breast.lesions:
        return _choose(rng, NORMAL_IMPRESSION).format(side=side)
    what = " and ".join("mass" if lesion.label == "mass" else "calcifications" for lesion in breast.lesions)
    phrase = _choose(rng, FINDING_IMPRESSION[breast.birads])
    return phrase.format(what=what, What=what.capitalize(), side=side, Side=side.capitalize())
