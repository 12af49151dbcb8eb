"""Radiology reports as text: sections, sentences, negation, and what a mirrored image would have been called."""

import functools
import re
from collections.abc import Callable

from mammoclip_jax.data.text.deidentify import deidentify as deidentify  # a part of this module's interface
from mammoclip_jax.data.text.sections import sections as sections
from mammoclip_jax.data.text.sections import tidy

_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|ms|vs|no|approx|fig|e\.g|i\.e|etc|rt|lt|st|incl)\.$", re.IGNORECASE)
_STOP = re.compile(r"[.!?] ")
_WORD = re.compile(r"\w")
_NUMBER = re.compile(r"\d{1,2}[.)]")
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")


def sentences(text: str) -> list[str]:
    """Split text into sentences, stops kept. Decimals, abbreviations ("approx.") and list numbers do not end one."""
    return [sentence for line in tidy(text).split("\n") for sentence in _of_line(line)]


def _of_line(line: str) -> list[str]:
    """The sentences of a line of `tidy`."""
    pieces, pending = [], ""
    start = mark.end() if (mark := _LIST_MARK.match(line)) else 0
    ends = [stop.end() for stop in _STOP.finditer(line, start)]
    for first, end in zip([start, *ends], [*ends, len(line) + 1]):
        piece = line[first : end - 1]
        if not pending and _NUMBER.fullmatch(piece):
            continue
        pending = f"{pending} {piece}" if pending else piece
        if not _ABBREVIATION.search(pending[-10:]):  # none is longer: quicker than all of a sentence
            pieces.append(pending)
            pending = ""
    if pending:
        pieces.append(pending)
    return [sentence for sentence in pieces if _WORD.search(sentence)]


# --- negation, after NegEx (Chapman et al., J Biomed Inform 34, 2001): cues with a scope that ends at a break ---------

_PSEUDO = re.compile(
    r"\b(?:no|without)\s+(?:(?:significant|interval|appreciable|substantial|suspicious)\s+)*"
    r"(?:change|changes|increase|decrease|growth|progression)\b"
    r"|\bnot\s+(?:only|significantly\s+changed|changed|(?:in\s+)?doubt\w*)\b"
    r"|\b(?:can\s*not|not|never|\w+n['’]t)\s+(?:\w+ly\s+)?(?:be\s+)?(?:\w+ly\s+)?"
    r"(?:excluded?|ruled?\s+out)\b"
    r"|\bnot\s+(?:possible|able)\s+to\s+(?:\w+ly\s+)?(?:exclude|rule\s+out)\b"
    r"|\b(?:no|without(?:\s+an?y?)?)\s+(?:\w+\s+)?(?:doubts?|questions?|uncertainty)\b"
    r"|\bno\s+(?:further|additional|urgent|immediate)\s+(?:work-?\s?up|evaluation|imaging|views|"
    r"biopsy|follow-?\s?up|assessment|treatment|action)\b"
    r"|\bno\s+longer\s+(?:obscured|as)\b",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"\b(?:no|not|without|negative\s+for|(?:free|clear)\s+of|absence\s+of|lack\s+of|lacks|neither|nor|never|"
    r"denies|rules?\s+out|ruled\s+out|r/o|resolution\s+of)\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\b(?:is|are|was|were|has|have|been)\s+(?:been\s+)?(?:absent|resolved|ruled\s+out|excluded|"
    r"not\s+(?:seen|identified|present|visible|visualized|visualised|demonstrated|evident|detected|"
    r"appreciated)|no\s+longer\s+(?:seen|identified|present|visible|visualized|visualised|evident))\b",
    re.IGNORECASE,
)
_ASSERTS = (
    r"(?:an?|one|two|three|four|several|multiple|few|some|scattered|benign|probably|stable|unchanged|known|"
    r"typically|vascular|coarse|postsurgical)"
)
_SEEN = (
    r"(?:(?!\b(?:or|and|nor|is|are)\b)[^,])*\b(?:is|are)\s+(?:again\s+)?"
    r"(?:seen|present|noted|identified|visible|stable)\b"
)
_BREAK = re.compile(
    r"[;:.!?]|\b(?:but|however|except|although|though|apart\s+from|aside\s+from|other\s+than|yet|"
    r"while|whereas|which\s+(?:is|are|has|have))\b|,?\s*\band\s+(?=there\s+(?:is|are)\b)"
    # "no mass and a cyst", "no mass, benign calcifications are present": something else is there
    rf"|,\s*(?=there\s+(?:is|are)\b)|,?\s*\band\s+(?={_ASSERTS}\b)|,\s*(?={_ASSERTS}\b{_SEEN})"
    rf"|(?P<item>,)\s*(?={_SEEN})",
    re.IGNORECASE,
)
_FINDING = re.compile(
    r"\b(?:mass|masses|nodules?|lesions?|cysts?|tumou?rs?|cancers?|carcinomas?|malignan\w+|"
    r"(?:micro)?calcifications?|calcium|distortions?|asymmetr\w+|(?:skin|trabecular)\s+thickening|"
    r"(?:nipple|skin)\s+retraction|(?:lymph)?adenopathy|lymph\s+nodes?|opacit\w+|findings?|"
    r"abnormalit\w+|opacification|edema|oedema|implants?)\b",
    re.IGNORECASE,
)

# A form's line, "Masses: none", "Calcifications - No suspicious calcifications": what stands before the mark is a name.
_MARK = re.compile(
    r"\s*[=?](?=\s)|\s+[-–—]\s+(?=(?:none|nil|absent|negative|no)\b)"
    r"|(?<=\w)\s+(?=(?:none|nil|absent)\s*(?:[.;,]|$))",
    re.IGNORECASE,
)
_NO_NAME = re.compile(
    r"\b(?:an?|the|there|is|are|was|were|has|have|shows?|with|in|at|seen|noted|present|"
    r"\d+\s*[cm]m)\b",
    re.IGNORECASE,
)
_NONE = re.compile(
    r"\s*(?:(?:none|nil|absent|nothing|0|not\s+(?:seen|identified|present|visible|visuali[sz]ed|evident|"
    r"demonstrated|detected|appreciated))\b(?![.,]\d|\s*[cm]m\b)|(?:no|negative)\s*(?:[.;,]|$))",
    re.IGNORECASE,
)


def negated(sentence: str, term: str | None = None) -> bool:
    """Does the sentence say that something is absent?

    With `term`: every mention of it (case-insensitive, from a word's start) is denied. Without: all the findings that
    the sentence names are denied, or it names none and holds a negation. "No change" and "cannot be excluded" deny
    nothing, nor does "no doubt of"; "Mass: none" denies the mass. "A mass without calcifications" is not negated as a
    whole; for `term="calcification"` it is.
    """
    mention = re.compile(rf"\b{re.escape(term)}", re.IGNORECASE) if term else _FINDING
    plain = _PSEUDO.sub(lambda m: "_" * len(m[0]), _MARK.sub(": ", " ".join(sentence.split())))  # hides the cue
    denied: list[bool] = []
    start = 0
    for part in [*_BREAK.finditer(plain), None]:
        if part and part["item"] and re.search(r",|\b(?:or|and)\b", plain[start : part.start()]):
            continue  # the last of a longer list: "no mass, asymmetry, distortion are seen"
        clause = plain[start : part.start() if part else len(plain)]
        named = part and part[0] == ":" and not _NO_NAME.search(clause) and _answer_denies(plain[part.end() :])
        denied += [True for _ in mention.finditer(clause)] if named else _denied(clause, mention)
        start = part.end() if part else start
    if denied:
        return all(denied)
    return term is None and bool(_BEFORE.search(plain) or _AFTER.search(plain))


def _answer_denies(answer: str) -> bool:
    """Does what stands after "Masses:" say that there are none?"""
    if _NONE.match(answer):
        return True
    following = _BREAK.search(answer)
    denied = _denied(answer[: following.start() if following else len(answer)], _FINDING)
    return bool(denied) and all(denied)


def _denied(clause: str, mention: re.Pattern) -> list[bool]:
    """For each mention in one clause: does a cue before it, or a verb of absence after it, deny it?"""
    after = [m.span() for m in _AFTER.finditer(clause)]
    # "is not seen" looks backwards; its own "not" must not deny what follows.
    before = [m.end() for m in _BEFORE.finditer(clause) if not any(a <= m.start() < b for a, b in after)]
    return [
        any(cue <= m.start() for cue in before) or any(start >= m.end() for start, _ in after)
        for m in mention.finditer(clause)
    ]


# --- laterality and position ---------------------------------------------------------------------------------------

_SIDES = {"left": "right", "right": "left", "lt": "rt", "rt": "lt", "l": "r", "r": "l"}
_VIEWS = r"(?:[- ]?(?:X?CC[LM]?|MLO|ML|LMO?))"  # not AT: "LAT" is lateral
_QUADRANT = r"(?:[ul][oi]?qs?\b)"  # UOQ; with its side RUOQ, L-LIQ; RUQ
# One pass over words, short forms, views and quadrants in any case, and lone capitals: "R:", "(L)", "L/R"; not
# "R/O" (rule out), "L/min" or "L4".
_SIDE = re.compile(
    r"(?i:\b(?:left|right)(?=\b|ward|most|sided)(?!\s+(?:away|now)\b)"
    rf"|\b(?:lt|rt)\b(?=\.?[\s-]*(?:breast|axilla|nipple|upper|lower|inner|outer|{_QUADRANT}|{_VIEWS}))"
    rf"|\b[lr](?={_VIEWS}\b|[\s-]?{_QUADRANT}|[\s-]+(?:breast|axilla|nipple|sided)))"
    r"|(?<![\w/'-])[LR](?=[\s),.:;]|$|/[LR]\b)(?!\.\w)|(?<=\b[LR]/)[LR]\b"
)
_HOUR = r"(?:1[0-2]|0?[1-9])(?::[0-5]\d)?"
_CLOCK = re.compile(
    rf"\b(?:{_HOUR}(?:\s?(?:-|–|to|and|or)\s?{_HOUR}){{0,4}})(?=\s*[- ]?o['’]?\s*clock)"
    r"|\b(?:(?:1[0-2]|0?[1-9]):[0-5]\d)(?!\s*(?:[ap]\.?m|\d|:))",
    re.IGNORECASE,
)
_POSITION = re.compile(
    r"\b(?:upper|lower|inner|outer|medial(?:ly)?|lateral(?:ly)?|superior(?:ly)?|inferior(?:ly)?|cranial(?:ly)?|"
    r"caudal(?:ly)?|top|bottom|above|below|quadrants?|[lr]?[ul][oi]qs?|[lr][ul]qs?|"
    r"(?:super|infer)o-?(?:later|medi)al(?:ly)?|(?:upp|low|inn|out)ermost|axill\w*|inframammary|clavic\w*|"
    r"sternal|parasternal|"
    r"o['’]?\s*clock)\b",
    re.IGNORECASE,
)


# A lateral view is no position: "true lateral", "lateral magnification views", "medial and lateral projections".
_PROJECTION = re.compile(
    r"\b(?:(?:true|straight|90[- ]degrees?)\s+lateral|(?:(?:medial|superior|inferior)\s+(?:and|or)\s+)?lateral"
    r"(?:\s+(?:and|or|to|oblique|medial|spot|compression|magnification|exaggerated|cc|cranio-?caudal|mlo|full|field|"
    r"digital|2d|3d))*\s+(?:views?|projections?|images?|films?|radiographs?|mammogra\w+|tomosynthesis))\b",
    re.IGNORECASE,
)


def swap_laterality(text: str) -> str:
    """What the report of the mirrored image says: left and right change places, clock hours are mirrored (2 to 10).

    Knows words (any case), Lt/Rt, L/R, and view names (LCC, R-MLO). Applied twice it gives the text back.
    """
    text = _SIDE.sub(lambda m: _like(_SIDES[m[0].lower()], m[0]), text)
    return _CLOCK.sub(lambda m: re.sub(_HOUR, lambda h: _mirror_hour(h[0]), m[0]), text)


def _like(word: str, model: str) -> str:
    """`word` in the case of `model`: LEFT, Left, left."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def _mirror_hour(hour: str) -> str:
    """The clock face seen in a mirror: 2 to 10, 12 to 12, 10:30 to 1:30."""
    hours, _, minutes = hour.partition(":")
    total = (720 - int(hours) * 60 - int(minutes or 0)) % 720
    return f"{total // 60 or 12}:{total % 60:02d}" if minutes else str(total // 60 or 12)


def names_position(text: str) -> bool:
    """Does the text say where in the breast something is, so that an image upside down would contradict it?

    Left and right do not count (see `swap_laterality`), nor do anterior, posterior and retroareolar, which a vertical
    flip keeps, nor a lateral view.
    """
    return bool(_POSITION.search(_PROJECTION.sub("", text)) or _CLOCK.search(text))


# --- the sentences of one breast, or of one view -------------------------------------------------------------------

_SIDE_HEADING = re.compile(
    r"^(?:the\s+)?(?:(?P<left>left|lt|l)|(?P<right>right|rt|r)|bilateral|both)"
    r"(?:\s+breasts?)?(?:\s+findings?)?\s*:",
    re.IGNORECASE,
)
_ANY_HEADING = re.compile(
    r"^(?!(?:\w+ )?(?:mass(?:es)?|(?:micro)?calcifications?|asymmetr(?:y|ies)|distortions?|axilla|"  # of one breast
    r"associated (?:features|findings))[ ]?:)[A-Za-z][A-Za-z /-]{2,40}:",
    re.IGNORECASE,
)
# Where `_SIDE` or `_SIDE_HEADING` may find a side, by breast; and of any, or both: looked for in a tenth of the time.
_MAY_NAME = {
    side: re.compile(rf"\b(?:{word}|{word[0]}(?:t?\b|x?cc|ml|lm|[ul][oi]?q))", re.IGNORECASE)
    for side, word in (("L", "left"), ("R", "right"))
}
_MAY_NAME_ANY = re.compile(r"\b(?:left|right|[lr](?:t?\b|x?cc|ml|lm|[ul][oi]?q)|both|either|bilateral)", re.IGNORECASE)
_BOTH_SIDES = re.compile(
    r"\b(?:bilateral(?:ly)?|both\s+(?:breasts|sides|axilla\w*)|either\s+(?:breast|side))\b", re.IGNORECASE
)
REFERS_BACK = re.compile(r"^(?:it|its|this|these|they|their|the\s+latter|which)\b", re.IGNORECASE)
_VIEW_WORDS = {
    "CC": r"(?<!\d )(?<!\d)\b[LR]?-?CC\b|\bcranio-?\s?caudal\b",
    "MLO": r"\b[LR]?-?MLO\b|\bmedio-?lateral[ -]oblique\b",
    "ML": r"(?<!\d )\b[LR]?-?ML\b|\bmedio-?lateral\b(?![ -]oblique)|\btrue\s+lateral\b",
    "LM": r"\b[LR]?-?LM\b|\blatero-?medial\b",
    "XCCL": r"\b[LR]?-?XCC[LM]?\b|\bexaggerated\b",
    "LMO": r"\b[LR]?-?LMO\b",
    "AT": r"\baxillary\s+tail\s+view\b",
}
_VIEW_NAMES = {view: re.compile(words, re.IGNORECASE) for view, words in _VIEW_WORDS.items()}


def sides(sentence: str) -> set[str]:
    """The breasts that a sentence names: {"L"}, {"R"}, both (also for "bilateral"), or none."""
    found = set()
    for mark in _MAY_NAME_ANY.finditer(sentence):
        if mark[0][0] in "bBeE":  # bilateral, both, either
            if _BOTH_SIDES.match(sentence, mark.start()):
                return {"L", "R"}
        elif side := _SIDE.match(sentence, mark.start()):
            found.add(side[0][0].upper())
    return found


def for_side(text: str, laterality: str) -> str:
    """The text of one breast: without the sentences about the other one alone. "" where none is left.

    Sentences of both breasts or of none stay. One below a heading like "LEFT BREAST:" belongs to that breast, and one
    that refers back ("It measures 5 mm.") to the breast of the sentence before. An addendum belongs to both breasts.
    `laterality` "" keeps everything.
    """
    if laterality in ("L", "R") and not _MAY_NAME["R" if laterality == "L" else "L"].search(text):
        return text  # it has no word for the other breast
    return _only(text, laterality, _named_sides)


def _named_sides(sentence: str, scope: set[str]) -> tuple[set[str], set[str]]:
    if heading := _SIDE_HEADING.match(sentence):
        scope = {"L"} if heading["left"] else {"R"} if heading["right"] else set()
    elif sentence[:9].lower() == "addendum:":  # it may move a finding to the other breast
        scope = {"L", "R"}
    elif _ANY_HEADING.match(sentence):
        scope = set()
    return scope if len(scope) == 2 else sides(sentence) or scope, scope


def for_view(text: str, view: str) -> str:
    """The text of one view: without the sentences that name other views and not this one. "" where none is left.

    `view` "" keeps everything.
    """

    return _only(text, view, _named_views)


def _named_views(sentence: str, scope: set[str]) -> tuple[set[str], set[str]]:
    return {name for name, words in _VIEW_NAMES.items() if words.search(sentence)}, scope


def _only(text: str, wanted: str, named: Callable[[str, set[str]], tuple[set[str], set[str]]]) -> str:
    """`text` without the sentences that speak of others than `wanted`; the very text where all stay."""
    if not wanted:
        return text
    lines, dropped = [], False
    for line in _subjects(text, named):
        kept = [sentence for sentence, about in line if not about or wanted in about]
        dropped |= len(kept) < len(line)
        lines += [" ".join(kept)] if kept else []
    return "\n".join(lines) if dropped else text


@functools.lru_cache(maxsize=16)  # a report is asked for each breast and view of an exam
def _subjects(text: str, named: Callable) -> list[list[tuple[str, set[str]]]]:
    """By line its sentences, and what each speaks of."""
    scope: set[str] = set()
    about: set[str] = set()
    lines = []
    for line in tidy(text).split("\n"):
        own = []
        for sentence in _of_line(line):
            subjects, scope = named(sentence, scope)
            about = subjects or (about if REFERS_BACK.match(sentence) else set())
            own.append((sentence, about))
        lines.append(own)
    return lines
