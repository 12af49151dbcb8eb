"""Identities out of report texts: dates, times, phones, addresses, numbers of people and exams, names.

The rules follow the identifiers of the HIPAA Safe Harbor list (45 CFR 164.514(b)(2)). They take too much rather than
too little, but keep what a radiologist means: BI-RADS categories, measurements, clock positions, fractions, devices.
No rule finds every name: give the names and numbers that the tables and the DICOM headers hold as well.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from mammoclip_jax.data.text import words
from mammoclip_jax.data.text.names import People, hide, hide_places
from mammoclip_jax.data.text.people import hide_institutions, hide_people

# --- dates and times ---------------------------------------------------------------------------------------------

_MONTHS = (
    r"(?:(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)(?:\b\.?|(?=\d))"
    r"|(?-i:May|MAY)(?:\b|(?=\d))(?!\s+(?:be|represent|reflect|have)\b))"
)
_D, _M, _Y = r"(?:3[01]|[12]\d|0?[1-9])", r"(?:1[0-2]|0?[1-9])", r"(?:19|20)\d\d"
_NO_UNIT = r"(?!\s*(?:x\s*\d|(?:mm|cm|ml|cc|mg)\b|%|[- ]?o['’]?\s*clock))"
_START, _END = r"(?<![\w/-])(?<!\d\.)", r"(?![\w/]|[.-]\d)"
_TIME = r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
_WHEN = (
    r"\b(?P<keep>(?:in|of|on|since|from|until|till?|before|after|by|during|through|years?|early|late|mid|circa|"
    r"dated?|born|last|exam|study|mammogram|and|to)[\s:-]+)"
)
_STUDY = r"(?:exam\w*|stud(?:y|ies)|mammogra\w+|biops\w+|surger\w+|lumpectom\w+|mastectom\w+|ultrasounds?|MRI)"
_DATES = (
    rf"{_START}(?:{_Y}[/.-]{_M}[/.-]{_D}|{_Y}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))"
    rf"(?:[T ]{_TIME}(?:Z|[+-]\d\d:?\d\d|\s?(?:[ap]\.?m|h|hrs|hours)\b)?)?{_END}",  # 2024-03-15
    rf"{_START}(?:{_M}[/-]{_D}|{_D}[/-]{_M})[/-](?:{_Y}|'?\d\d){_END}{_NO_UNIT}",  # 3/15/24, 15-03-2024
    rf"{_START}(?:{_M}\.{_D}|{_D}\.{_M})\.(?:{_Y}|\d\d){_END}{_NO_UNIT}",  # 15.3.2024
    rf"{_START}(?:{_M}[/-]{_Y}|{_Y}[/-](?:0[1-9]|1[0-2])|{_Y}\s?[-–/]\s?{_Y}){_END}",  # 3/2024, 2018-2020
    rf"{_START}{_D}(?:st|nd|rd|th)?\.?(?:\s+(?:of|de))?[\s-]?{_MONTHS}(?:[\s,'-]{{0,2}}(?:{_Y}|\d\d){_END}{_NO_UNIT})?"
    r"(?!\w)",  # 15th of March, 15-Mar-24
    rf"{_START}{_D}\.?\s(?:de\s)?[^\W\d_]{{3,}}\.?\s(?:de\s)?{_Y}{_END}",  # 15 mars 2024
    rf"\b{_MONTHS}[\s-]?{_D}(?:st|nd|rd|th)?(?![\w/])(?!\.\d){_NO_UNIT}(?:[\s,'-]{{1,2}}{_Y}{_END})?",  # March 15
    rf"\b{_MONTHS}(?:[\s,'-]{{1,2}}|\s+of\s+)(?:{_Y}|'\d\d){_END}",  # March 2024
    rf"{_WHEN}{_M}/{_D}{_END}(?!\s+(?:of|views?|images)){_NO_UNIT}",  # on 3/15
    rf"{_WHEN}(?-i:January|February|March|April|May|June|July|August|September|October|November|December)\b",
    rf"{_WHEN}{_Y}s?{_END}{_NO_UNIT}",  # since 2019
    rf"{_START}{_Y}(?=\s+{_STUDY}\b)",  # 2019 mammogram
    *[rf"(?P<keep>\[date\](?:,|;|\s?[/&+-]|,?\s+and|\s+or)\s*){_Y}{_END}{_NO_UNIT}"] * 4,  # 03/2019, 2017 and 2015
    *[rf"(?P<keep>\b(?:compar\w+|priors?|previous|films?|{_STUDY})\b[^.\d\n]{{0,60}}?(?<!\w)){_Y}{_END}{_NO_UNIT}"] * 2,
    *[rf"{_START}{_Y}(?=(?:,|;|\s?[/&+]|,?\s+and|\s+or)\s*\[date\])"] * 4,  # 1986 and [date]
)
_TIMES = (
    rf"(?<![\w:]){_TIME}\s*(?:[ap]\.?\s?m\b\.?|hrs?\b|hours?\b|h\b)",  # 10:30 am
    r"(?<![\w:])(?:[01]?\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?![\w:])",
    r"(?<![\w:])(?:0\d|1[3-9]|2[0-3]|0):[0-5]\d(?![\w:])(?![- ]?o['’]?\s*clock)",  # no position: 1:00 to 12:59
    r"(?<![\w:/.-])(?:1[0-2]|0?[1-9])\s?[ap]\.?m\b\.?",  # 3 pm
    r"(?<![\w:])(?:[01]\d|2[0-3])[0-5]\d\s?(?:hrs|hours|h)\b",  # 1430 hours
    rf"(?P<keep>\[date\](?:,?\s+at)?\s+|\btime(?:\s+of\s+\w+)?:\s*){_TIME}(?!\w)",
)

# --- numbers of people, exams and lines; addresses ---------------------------------------------------------------

_NUMBER = r"\s*(?:(?:id|number|no|num)\b\.?)?"
_PERSONAL = (
    r"(?:MRN|medical\s+record|accession|acc(?=\s*[#:n])|patient\s+(?:id|number|no)\b\.?|PID|ID|account|acct|"
    r"SSN|social\s+security|NHS|licen[cs]e|policy|insurance|member|UID)"
)
_FILED = r"(?:case|study|exam|visit|encounter|chart|file|record|order|requisition|specimen|serial)"
_IDS = (
    r"(?<![\w.])\d+(?:\.\d+){4,}",  # a UID
    rf"\b(?P<keep>{_PERSONAL}{_NUMBER}(?:\s*[#:=]+\s*|\s+)(?:is\s+)?)"
    r"(?:\d+[ -])*(?=[\w-]*\d)[\w-]*\w(?:[./][\w-]*\w)*",
    rf"\b(?P<keep>{_FILED}{_NUMBER}(?:\s*[#:=]+\s*|\s+)(?:is\s+)?)(?=(?:[\w-]*\d){{4}})[\w-]+",
    r"(?<!\w)(?<!\d[.,-])\d{6,}(?!\w|[.,]\d)",  # 6 digits and more
    r"(?<![\w.-])(?=[\w-]*[^\W\d])(?!\d+(?:x\d+)*(?:mm|cm)\b)"
    r"(?=(?:[^\W\d]|[_-])*+(?:\d[^\W\d]*[_-]*[^\W\d]*){5})[\w-]+",
    r"(?<![\w./-])(?=(?:-?\d){6})\d+(?:-\d+)+(?!\w)",  # 12-345678
)
_EMAILS = (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*", r"\b(?:https?://|www\.)[^\s)>\]]+")
_EXTENSION = r"(?:,?\s*(?:x|ext\.?)\s*\d+)?"
_PHONES = (
    r"(?<![\w.])\+\d{1,3}(?:[\s.-]?(?:\(\d{1,5}\)|\d{1,5})){2,6}(?!\w)",  # +44 20 7946 0958
    rf"(?<![\w.-])(?:1[\s.-])?(?:\(\d{{3}}\)\s?|\d{{3}}[\s.-])\d{{3}}[\s.-]\d{{4}}(?!\w){_EXTENSION}",
    rf"(?<![\w./-])\d{{3}}-\d{{4}}(?!\w|[./-]\d){_EXTENSION}",  # 555-1234
    r"\b(?P<keep>(?:phone|tel(?:ephone)?|fax|pager|mobile|beeper|ext(?:ension)?)\b[\s.:#]*(?:is\s|at\s|number\s)?)"
    r"\(?\d[\d\s().-]+\d",
)
_PLACES = (
    r"\b\d{1,5}\s(?-i:(?:[A-Z][\w.'-]*\s){1,3}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Drive|Lane|Ln|Boulevard|Blvd|Court)\b)\.?",
    r"\b(?-i:[A-Z]{2})\s\d{5}(?:-\d{4})?(?![\w-])",  # state and ZIP code
)
_OLD = r"(?:9\d|1[0-2]\d)"
_AGES = (  # 90 and over names a person
    rf"(?<![\w.]){_OLD}(?=[\s-]*(?:years?|yrs?|y)[\s./-]*(?:old|o\b|of\s+age|female|woman|f\b))",
    rf"(?<![\w.]){_OLD}(?=[\s-]*(?:yo|y/o|y\.o\.)(?!\w))",
    rf"(?<![\w.]){_OLD}(?=F(?!\w))",
    rf"(?P<keep>\b(?:aged?|age\s+is|age\s+of)\s*[:=]?\s*){_OLD}(?![\w%]|\.\d|\s*(?:mm|cm)\b)",
    r"\bninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?(?=[\s-]+years?[\s-]+old\b)",
)

# --- names of people -------------------------------------------------------------------------------------------------

_STOP = rf"(?!(?:{'|'.join(map(re.escape, words.NOT_NAMES))})(?![\w'’-]))"
_WORD = rf"(?:[^\W\d_]\.|{_STOP}(?:[^\W\d_](?:[^\W\d_]|['’-](?=[^\W\d_]))+|[^\W\d_](?=\s)))"
_CAPITAL = rf"(?=(?-i:[A-ZÀ-ÞŁŚŠŽ])){_WORD}"
_GLUE = r"(?:[ \t]+(?:van|von|de|del|della|da|dos|la|le|bin|ibn|al|el|der|den)(?=[ \t]))*"
_DEGREES = r"(?:(?:,[ \t]*|[ \t]+)(?-i:M\.?D|D\.?O|Ph\.?D|FRCR|FACR|MBBS|R\.N|RN|RT(?:\(R\))?(?:\(M\))?|PA-C|NP)\b\.?)"
_PROPER = rf"{_CAPITAL}(?:,[ \t]*{_CAPITAL})?(?:{_GLUE}[ \t]+{_CAPITAL}){{0,3}}"
# In a text of mixed case a name has capitals; in one of capitals, or of none, it ends at a word that is no name.
_PERSON = (
    rf"(?:(?=(?-i:[A-ZÀ-ÞŁŚŠŽ](?:[^\WA-Z\d_]|['’.][A-Za-z ]|[ ])))(?:{_PROPER})"
    rf"|{_WORD}(?:,[ \t]*{_WORD})?(?:{_GLUE}[ \t]+{_WORD}){{0,2}}){_DEGREES}*"
)
_TITLES = r"(?:drs?|doctor|prof(?:essor)?|mr|mrs|ms|miss(?=[ \t]+(?-i:[A-Z])))\b\.?"
_ROLES = (
    r"(?:(?:(?:patient(?:['’]s)?|full|first|last|family|given|maiden|physician|doctor)[ \t]+)?name|radiologist|"
    r"(?:referring|ordering|reading|attending|interpreting|reporting|primary|requesting)[ \t]+"
    r"(?:physician|radiologist|provider|doctor|clinician|md)|attending|resident|fellow|technologist|"
    r"technician|transcriptionist|provider|physician|reader|sonographer|author)"
)
_DONE_BY = (
    r"(?:interpreted|dictated|signed|read|reported|transcribed|verified|ordered|performed|requested|approved|"
    r"reviewed|finalized|authenticated|authored|prepared|referred)[ \t]+"
    r"(?:and[ \t]+\w+[ \t]+)?(?:(?:electronically|digitally)[ \t]+)?by"
)
_NAMES = (
    r"(?<![\w^])(?:(?:van|von|de|del|della|da|dos|la|le|der|den|st\.?)[ ])*[^\W\d_][^\W\d_'’-]*(?:-[^\W\d_]+)?"
    r"\^[^\W\d_][\w'’. ^-]*(?<![ .])",  # DOE^JANE^M
    rf"\b(?P<keep>{_TITLES}[ \t]*){_PERSON}(?!\w)",
    rf"\b(?P<keep>(?:{_ROLES}[ \t]*:|{_DONE_BY}[ \t]*:?)[ \t]*){_PERSON}(?!\w)",
    rf"\b(?P<keep>patient[ \t]*:[ \t]*){_PROPER}(?!\w)",
    rf"\b{_PROPER}{_DEGREES}+(?!\w)",
    rf"\b{_CAPITAL}(?:[ \t]+{_CAPITAL}){{1,2}}(?=,?[ \t]+(?:is[ \t]+|was[ \t]+)?(?:an?[ \t]+)?\d{{1,3}}[ \t-]*y)",
)

_ONE_NAME = re.compile(rf"\[name\](?:,?[ \t]+\[name\]|(?!,?[ \t]*RT\b(?!\()){_DEGREES}(?!\w))+")
_RULES = [
    [(re.compile(pattern, re.IGNORECASE), mark) for patterns, mark in part for pattern in patterns]
    for part in (
        ((_EMAILS, "[email]"),),
        ((_DATES, "[date]"), (_TIMES, "[time]"), (_PHONES, "[phone]")),
        ((_PLACES, "[place]"), (_IDS, "[id]"), (_AGES, "[age]")),
        ((_NAMES, "[name]"),),
    )
]


def deidentify(text: str, names: Iterable[str] = (), places: Iterable[str] = ()) -> str:
    """`text` with [date], [time], [phone], [email], [place], [id], [age] or [name] for what may identify a person.

    Args:
        text: a report or a part of one, in any case.
        names: people, as tables and headers hold them ("DOE^JANE", "Doe, Jane"; names.py says what they hide), and
            numbers of patients and exams. What has a digit is matched as it stands, in any case, and becomes [id].
        places: institutions and addresses.

    Years go where they belong to a date or follow words like "in" and "since"; ages go from 90 years on. Doing it
    twice changes nothing more.
    """
    known = _known(frozenset(names), frozenset(places))
    emails, times, numbers, people = _RULES
    text = _ruled(text, emails)
    for number in known.numbers:
        spaced = r"\s+".join(map(re.escape, number.split()))
        text = re.sub(rf"(?<![\w\[]){spaced}(?!\w)", "[id]", text, flags=re.IGNORECASE)
    text = _ruled(text, times)
    text = hide_places(text, known.places)
    text = hide_institutions(_ruled(text, numbers))
    text = hide(text, known.people)
    text = _ruled(hide_people(text), people)
    return _ONE_NAME.sub("[name]", text)


def _ruled(text: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, mark in rules:
        text = pattern.sub(lambda m, mark=mark: (m.groupdict().get("keep") or "") + mark, text)
    return text


class _Known(NamedTuple):
    numbers: tuple[str, ...]  # longest first
    people: People
    places: tuple[str, ...]


@functools.lru_cache(maxsize=16)  # the texts of a study come one after the other
def _known(names: frozenset[str], places: frozenset[str]) -> _Known:
    """A single character would hide too much."""
    told = {name.strip() for name in names if len(name.strip()) > 1}
    numbers = {name for name in told if re.search(r"\d", name)}
    return _Known(
        tuple(sorted(numbers, key=lambda name: (-len(name), name))), People(told - numbers), tuple(sorted(places))
    )
