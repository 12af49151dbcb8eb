"""Known people and places out of a text, however it writes them: "DOE^JANE^M" also hides "Doe, Jane", "JANE M. DOE",
"jane doe", "Mrs. Doe's", "J. Doe", "J.D." and "JMD".

A part of a name that is no other word goes wherever it stands, in any case. One that also is a word ("Brown", "May") or
an eponym ("Paget") goes where it is written as a name: beside another part, after a title, or with a capital within a
sentence, but not in "Paget disease". One that radiologists write ("Left", "Mass") goes beside another part or after a
title only.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from mammoclip_jax.data.text import words
from mammoclip_jax.data.text.contexts import AFTER, OWNS

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*(?:-[^\W\d_]+(?:['’][^\W\d_]+)*)*")
_GAP = re.compile(r"[ \t]*[\n]?[ \t]*|\.?[ \t]*[,^_/=][ \t]*|\.[ \t]*\n?[ \t]*|-")  # between the parts of a name
_BEFORE_NAME = {*words.TITLES, *words.ROLES}
_EPONYM = re.compile(
    rf"(?<![\w-])(?:(?:{'|'.join(sorted(words.EPONYMS))})(?:['’]?s)?(?:[ -](?:and )?|(?=\W|$)))+"
    r"(?:(?:disease|syndrome|ligament|gland|tumou?r|lymphoma|sign|cell|phenomenon|method|scor|grad|model|catheter|node|"
    r"stain|histolog|index|criteria|classification|technique|maneuver|position|staging|mutation|carcinoma|effect|"
    r"ultrasound|flow|imaging|signal|system|unit|clip|nodul|septa|space|fascia|triangle|needle|risk|thyroiditis|"
    r"phenotype|procedure|contracture|suspensory|coil|marker|tubercle|tail)\w*|(?:of|in) the \w+)",
    re.IGNORECASE,
)


class Token(NamedTuple):
    """A word of a text."""

    start: int
    end: int
    key: str  # folded: lower case, without accents, apostrophes and a closing 's
    written: str

    @property
    def capital(self) -> bool:
        return self.written[0].isupper()


def fold(text: str) -> str:
    """`text` in lower case and without accents, letter for letter."""
    if text.isascii():
        return text.lower()
    return "".join((unicodedata.normalize("NFD", letter)[0].lower() or letter)[0] for letter in text)


def tokens(text: str) -> list[Token]:
    """The words of a text; the 's of a possessive is none of the word."""
    sequence = []
    for match in TOKEN.finditer(text):
        written = re.sub(r"['’][sS]?$", "", match[0])
        sequence.append(Token(match.start(), match.start() + len(written), re.sub("['’]", "", fold(written)), written))
    return sequence


def mixed(text: str) -> bool:
    """Whether capitals tell something: not in a text of capitals or of none."""
    return bool(re.search(r"[^\W\d_]*[a-z]{2}", text) and re.search(r"[A-ZÀ-Þ]", text))


def within(text: str, start: int) -> bool:
    """Whether a place is neither the start of a sentence, of a line nor of what follows a colon."""
    return bool(
        re.search(r"[\w,)\]]['’\"(]*[ \t]+['’\"(]*$", text[max(0, start - 8) : start])
        and not re.search(r"\d\)[ \t]*$", text[max(0, start - 8) : start])
    )


def protected(text: str) -> list[tuple[int, int]]:
    """Where eponyms stand: "Paget disease", "Cooper's ligaments"."""
    return [match.span() for match in _EPONYM.finditer(text)]


class People:
    """Names as tables and headers hold them."""

    def __init__(self, names: Iterable[str]):
        self.parts: set[str] = set()
        self.initials: set[str] = set()
        self.letters: set[str] = set()
        self.literals: set[str] = set()  # without words, or of a script that has no spaces between them
        for name in names:
            for written in name.split("="):  # alphabetic, ideographic, phonetic
                self._add(written)

    def _add(self, name: str) -> None:
        if any(ord(letter) >= 0x2E80 for letter in name):
            self.literals |= {part for part in re.split(r"[\s^=,]+", name) if len(part) > 1}
            return
        self.literals |= {name} if len(name) > 1 and all(len(token.key) < 2 for token in tokens(name)) else set()
        known = [
            token.key
            for token in tokens(name.replace("_", " "))
            if token.key not in words.TITLES | words.DEGREES | words.PLACEHOLDERS
        ]
        count = 0
        if re.fullmatch(r"[^,^]*,\s*\S.*", name) or "^" in name:  # the family name comes first
            first = re.split(r"[,^]", name)[0]
            count = len([token for token in tokens(first) if token.key in known])
            known = known[count:] + known[:count]
        parts = [key for key in known if key not in words.PARTICLES] or known
        self.parts |= {key for key in parts if len(key) > 1}
        for key in known:  # either half of "Smith-Jones"
            halves = key.split("-")
            if len(halves) > 1:
                self.parts |= {half for half in halves if len(half) > 2} | {"".join(halves)}
        joined = ""
        for key in known:  # "Vandyke" for "van Dyke", "Delacruz"
            self.parts |= {joined + key} if joined and key not in words.PARTICLES else set()
            joined = joined + key if key in words.PARTICLES else ""
        self.letters |= {key[0] for key in parts}
        given = [key[0] for key in known[: len(known) - count]] if count else []
        whole = [key[0] for key in parts]
        for letters in (whole, [*given, *(key[0] for key in known[len(given) :][:1])]):  # of "van Dyke" D or V
            if not 2 <= len(letters) <= 4:
                continue
            spelt = "".join(letters)
            self.initials |= {spelt, letters[0] + letters[-1], letters[-1] + letters[0], letters[-1] + spelt[:-1]}

    def kind(self, key: str) -> str:
        """One of "sure", "word", "clinical" for a part of a name; "" for any other word."""
        known = key in self.parts or any(part in self.parts and _sort(part) == "sure" for part in key.split("-"))
        return _sort(key) if known else ""


@functools.cache
def _sort(key: str) -> str:
    if key in words.COMMON or key in words.EPONYMS or len(key) < 3:
        return "word"
    return "clinical" if key in words.CLINICAL or key in words.ABBREVIATIONS else "sure"


def hide(text: str, people: People, mark: str = "[name]") -> str:
    """`text` with `mark` for each of the people in it."""
    for part in sorted(people.literals):
        text = re.sub(rf"(?<![A-Za-z\[]){re.escape(part)}(?![A-Za-z])", mark, text)
    if not people.parts:
        return text
    sequence, taken = tokens(text), []
    cased, eponyms = mixed(text), protected(text)
    position = 0
    while position < len(sequence):
        end = _run(text, sequence, position, people)
        run = sequence[position:end]
        if run and _is_name(text, sequence, position, run, people, cased, eponyms):
            taken.append((run[0].start, run[-1].end + (len(run[-1].key) == 1 and text[run[-1].end :][:1] == ".")))
        position = max(end, position + 1)
    for start, end in reversed(taken):
        text = text[:start] + mark + text[end:]
    return _initials(text, people, mark)


def _run(text: str, sequence: list[Token], position: int, people: People) -> int:
    """Where the words that may be one name end: parts, initials and particles, ending with a part or an initial."""
    end = last = position
    parts = 0
    while end < len(sequence):
        token = sequence[end]
        joined = end == position or _GAP.fullmatch(text[sequence[end - 1].end : token.start])
        part = people.kind(token.key)
        if not joined or not (part or token.key in words.PARTICLES or _initial(text, sequence, end, people, parts)):
            break
        if end > position and _sentence_ends(text, sequence[end - 1], token):
            break
        parts += bool(part)
        end += 1
        last = end if part or token.key not in words.PARTICLES else last
    return last if parts else position


def _sentence_ends(text: str, before: Token, token: Token) -> bool:
    return len(before.key) > 1 and "." in text[before.end : token.start]


def _initial(text: str, sequence: list[Token], place: int, people: People, parts: int) -> bool:
    """Matches "J." and "J", where they may be of a name: not the L of "Doe L breast"."""
    token = sequence[place]
    if len(token.key) > 1 or not token.capital and token.key not in people.letters:
        return False
    dotted = text[token.end : token.end + 1] == "."
    follows = sequence[place + 1] if place + 1 < len(sequence) else None
    part_follows = follows is not None and bool(people.kind(follows.key)) and follows.start - token.end < 4
    if token.key in people.letters and (dotted and (parts or part_follows) or token.capital and part_follows):
        return True
    ends = follows is None or not re.match(r"[ \t]", text[token.end :]) or token.key not in "lr"
    return bool(parts) and (token.key in people.letters or dotted or token.capital and token.key not in "ai") and ends


def _is_name(text, sequence, position, run, people, cased, eponyms) -> bool:
    kinds = [people.kind(token.key) for token in run]
    if "sure" in kinds:
        return True
    parts = [token for token, kind in zip(run, kinds) if kind]
    before = sequence[position - 1] if position else None
    if before and before.key in _BEFORE_NAME and re.fullmatch(r"\.?[ \t]*", text[before.end : run[0].start]):
        return before.key in words.TITLES or run[0].capital
    if any(start <= run[0].start < end for start, end in eponyms):
        return False
    capitals = all(token.capital and not _shouted(sequence, token) for token in parts)
    if len({token.key for token in parts}) > 1:
        return "clinical" not in kinds or capitals
    if len(run) > 1 and capitals and any(len(token.key) == 1 for token in run):
        return True
    rest = text[run[-1].end :]
    return (
        "clinical" not in kinds
        and cased
        and capitals
        and bool(within(text, run[0].start) or AFTER.match(rest) or OWNS.match(rest))
    )


def _shouted(sequence: list[Token], token: Token) -> bool:
    """Whether a word stands among others in capitals, where its own say nothing."""
    place = sequence.index(token)
    around = [other.written for other in sequence[max(0, place - 1) : place + 2] if other is not token]
    return token.written.isupper() and any(len(other) > 2 and other.isupper() for other in around)


def _initials(text: str, people: People, mark: str) -> str:
    """Matches "J.D." in any case; "JD" where it is no abbreviation; "jd" in a signature."""
    plain = sorted(people.initials - words.ABBREVIATIONS - words.TITLES - words.DEGREES)
    spelt = "|".join(
        r"\.[ ]?".join(letters) + r"\."
        for letters in sorted(people.initials, key=len, reverse=True)
        if letters not in ("md", "do", "pa", "rn", "np", "ie", "eg", "am", "pm")
    )
    if spelt:
        text = re.sub(rf"(?<![\w.])(?:{spelt})(?!\w)", mark, text, flags=re.IGNORECASE)
        signed = "|".join(sorted(people.initials - words.DEGREES)).upper() or "(?!)"
        text = re.sub(rf"(?<![\w/])(?:{signed})(?=/[a-z]{{2,3}}(?!\w))", mark, text)  # who dictated, who typed
    if plain:
        either = "|".join(plain)
        text = re.sub(rf"(?<![\w.\[-])(?:{either.upper()})(?![\w-])", mark, text)
        text = re.sub(rf"(?<=[/:(])(?:{either})(?=\W|$)|(?<!\w)(?:{either})(?=/)", mark, text, flags=re.IGNORECASE)
    return text


_KINDS = """
hospital hospitals clinic clinics center centre centers medical health healthcare system systems imaging radiology
diagnostic diagnostics department university general regional community memorial women womens cancer institute services
associates partners infirmary school medicine campus network breast care
""".split()
_SAINT = ("st", "saint", "ste", "mount", "mt")
_GENERIC = (
    frozenset(
        """
the of and at in for an dept city county state national group street avenue road drive suite floor building north south
east west llc inc ltd foundation college outpatient screening mammography mobile unit service
""".split()
    )
    | set(_KINDS)
    | set(_SAINT)
)
_KIND = rf"(?:[ -]+(?:{'|'.join(_KINDS)})\b)*"


def hide_places(text: str, places: Iterable[str], mark: str = "[place]") -> str:
    """`text` with `mark` for institutions and addresses: whole, and each of their words that no other text has."""
    for place in sorted(places, key=lambda place: (-len(place), place)):
        known = [token.key for token in tokens(place) if token.key not in words.PLACEHOLDERS - set(_KINDS)]
        telling = sorted({key for key in known if key not in _GENERIC and len(key) > 2 and _sort(key) == "sure"})
        whole = r"[\W_]*".join(re.escape(word) for word in re.findall(r"[^\W_]+", fold(place)))
        if telling or len(known) > 1 and not _GENERIC.issuperset(known):
            text = _where(text, rf"(?<!\w){whole}(?!\w){_KIND}", mark)
        if telling:
            either = "|".join("['’]?".join(key) + "(?:['’]?s)?" for key in telling)
            saint = rf"(?:(?:{'|'.join(_SAINT)})\.? +)?"
            text = _where(text, rf"(?<!\w){saint}(?:{either})(?:[ -]+(?:{either}))*(?!\w){_KIND}", mark)
    return text


def _where(text: str, pattern: str, mark: str) -> str:
    """`text` with `mark` where its folded form matches."""
    for match in reversed(list(re.finditer(pattern, fold(text)))):
        text = text[: match.start()] + mark + text[match.end() :]
    return text
