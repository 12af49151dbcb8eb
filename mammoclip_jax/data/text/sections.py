"""The sections of a radiology report, and which of them become texts.

Headings have two levels. Those of the report (HEADINGS but "density") each begin a section, which lasts until the next
of them. Those within the findings ("BREAST COMPOSITION:", "RIGHT BREAST:", "Masses:") stay in the text they stand in;
they begin the findings only where a report has no heading for these.
"""

import re
from typing import NamedTuple

HEADINGS = {
    "findings": (
        "findings",
        "finding",
        "finding(s)",
        "mammographic findings",
        "mammogram findings",
        "mammography findings",
        "imaging findings",
        "radiological findings",
        "description",
        "report",
    ),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "interpretation",
        "summary",
        "overall impression",
        "final impression",
        "diagnosis",
        "comment",
    ),
    "assessment": (
        "assessment",
        "final assessment",
        "overall assessment",
        "bi-rads assessment",
        "birads assessment",
        "acr assessment",
        "overall assessment category",
        "assessment category",
    ),
    "density": (
        "density",
        "breast density",
        "breast composition",
        "tissue density",
        "composition",
        "acr density",
        "tissue composition",
        "breast tissue",
        "breast tissue density",
        "breast tissue composition",
        "parenchyma",
        "breast parenchyma",
        "parenchymal pattern",
        "parenchymal density",
    ),
    "recommendation": ("recommendation", "recommendations", "management", "follow-up", "follow up", "plan", "advice"),
    "comparison": (
        "comparison",
        "comparisons",
        "comparison studies",
        "prior studies",
        "previous studies",
        "previous imaging",
        "previous examinations",
    ),
    "indication": (
        "indication",
        "indications",
        "history",
        "clinical history",
        "clinical information",
        "clinical details",
        "clinical indication",
        "clinical data",
        "reason for exam",
        "reason for examination",
        "reason for study",
        "patient history",
    ),
    "technique": ("technique", "procedure", "examination", "exam", "views", "exam type", "study", "protocol"),
    "signature": (
        "signed",
        "signed by",
        "electronically signed by",
        "reported by",
        "dictated by",
        "read by",
        "verified by",
        "radiologist",
        "reporting radiologist",
    ),
    "addendum": ("addendum", "addenda", "correction", "corrigendum"),
}
_SECTION_OF = {heading: section for section, headings in HEADINGS.items() for heading in headings}
_BEFORE = ("report", "technique", "indication", "comparison", "signature")  # what a report begins with
_PARTS = {"findings": ("density", "findings"), "impression": ("assessment", "impression")}  # of a text

_NAMES = "|".join(re.escape(name) for name in sorted(_SECTION_OF, key=len, reverse=True))
_CAPITALS = _NAMES.upper()
_NUMBER = r"(?P<number>(?:\d{1,2}|[A-H]|[IVX]{1,4})[.)] ?[*_]{0,3})?"
_MARK = r"[ *_\]>=]*+(?P<mark>:[*_]{0,3}|[-–—]+(?= |$)|$)"  # a colon, a dash, or the end of the line
_LEAD = rf"^[ *#_>•=\[<-]*+{_NUMBER}"
_ADDENDUM = r"(?i:addend(?:um|a))(?: [^\n:]{0,50}?\d\d?:\d\d[^\n:]{0,20}| [^\n:]{1,50})?"  # "ADDENDUM 2 at 10:30:"
# At the start of a line; or in a line: in capitals ("dense. IMPRESSION: ..."), a few also after a sentence in any case.
_HEADING = re.compile(
    rf"{_LEAD}(?:(?P<line>(?i:{_NAMES}))(?: ?(?:/|&|(?i:and)) ?(?i:{_NAMES}))?(?: ?\([^()\n]{{0,40}}\))?{_MARK}"
    rf"|(?P<addendum>{_ADDENDUM}) ?:|(?P<birads>(?i:bi-?rads|acr)(?: (?i:category|code|score|class))?) ?:)"
    rf"|(?<=[.:;\s])(?<!RIGHT )(?<!LEFT )(?<!BREAST )(?<!BILATERAL )(?<!OTHER )(?<!ADDITIONAL )(?<!ULTRASOUND )"
    rf"(?P<inline>{_CAPITALS}) ?:"
    r"|(?<=[.:;] )(?P<sentence>(?i:findings|impression|opinion|conclusion|comparison|technique|indication|history|"
    r"recommendations?|addendum)) ?:",
    re.MULTILINE,
)
_SIDE = r"(?:right|left|both|bilateral)(?: (?:breasts?|axillae?|axilla|sides?|mammogram|ultrasound))?(?: findings?)?"
_WITHIN = "|".join(
    (
        _SIDE,
        "(?:suspicious |dominant )?mass(?:es)?",
        "(?:suspicious )?(?:micro)?calcifications?",
        "asymmetr(?:y|ies)",
        "(?:architectural )?distortions?",
        "associated (?:features|findings)",
        "(?:other|additional) findings",
        "(?:skin and )?nipples?",
        "skin",
        "axillae?",
        "(?:axillary )?(?:lymph )?nodes",
        "implants?",
        "tomosynthesis",
        "breast mri",
        "(?:digital )?mammogra(?:ms?|phy)",
        "ultrasound(?: findings)?",
        *map(re.escape, sorted(HEADINGS["density"], key=len, reverse=True)),
    )
)
_PARAGRAPH = re.compile(rf"\n\s*\n|\n(?=\s*(?:[-*•]|\d{{1,2}}[.)])\s)|\n(?=\s*(?i:{_WITHIN}|addendum):)")
_INNER = re.compile(rf"{_LEAD}(?P<line>(?i:{_WITHIN})){_MARK}", re.MULTILINE)


class Part(NamedTuple):
    """What stands under one heading of a report."""

    name: str  # a key of HEADINGS; "report": under no heading
    heading: str  # as written
    text: str


class Told(NamedTuple):
    """A report by what becomes of it: section -> text, in the order written."""

    texts: dict[str, str]  # findings, impression; where there is neither, all sections
    kept: dict[str, str]  # the sections that are in `texts`
    dropped: dict[str, str]  # the others

    @property
    def parts(self) -> dict[str, dict[str, str]]:
        """The manifest's column of that name."""
        return {"kept": self.kept, "dropped": self.dropped}


def sections(report: str) -> dict[str, str]:
    """Split a report at its headings: section name (a key of HEADINGS) to text, in the order written.

    Text before the first heading, or a report without any, is "report". Empty sections are left out; a section that
    comes twice is joined by a space. White space is collapsed except for paragraph ends.
    """
    return _joined(split(report))


def told(report: str) -> Told:
    """The texts of a report, and its sections that are none.

    A composition outside the findings belongs to them, an assessment to the impression, each with its heading. An
    addendum may correct either, so it ends both.
    """
    parts = split(report)
    texts = {}
    for name, names in _PARTS.items():
        lines = [
            part.text if part.name == name else f"{part.heading}: {_stopped(part.text)}"
            for part in parts
            if part.name in names
        ]
        if lines:
            texts[name] = "\n".join(lines)
    every = _joined(parts)
    added = every.get("addendum", "")
    used = {name for names in _PARTS.values() for name in names} | {"addendum"} if texts else set(every)
    texts = texts or {name: text for name, text in every.items() if name != "addendum" or len(every) == 1}
    if added:
        texts = {
            name: text if name == "addendum" else f"{_stopped(text)}\nAddendum: {added}" for name, text in texts.items()
        }
    return Told(
        texts,
        {name: text for name, text in every.items() if name in used},
        {name: text for name, text in every.items() if name not in used},
    )


def split(report: str) -> list[Part]:
    """The parts of a report, none of them empty.

    Where no heading names the findings, they begin at the first heading that belongs within them, or with the paragraph
    after the section before it or before the impression; else they are what stands under no heading above an
    impression.
    """
    text = re.sub(r"[ \t\xa0]+", " ", report.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r" $", "", text, flags=re.MULTILINE)
    parts: list[Part] = []
    name, heading, start = "report", "", 0
    for at, end, section, written in [*_walked(text), (len(text), 0, "", "")]:
        parts.append(Part(name, heading, text[start:at]))
        name, heading, start = section, written, end
    if not any(part.name == "findings" and part.heading and part.text.strip() for part in parts):
        parts = _with_body(parts)
    parts = [part._replace(text=tidy(_inner_lines(part.text) if part.name in _PARTS else part.text)) for part in parts]
    return [part for part in parts if part.text]


def tidy(text: str) -> str:
    """White space collapsed; a line for each paragraph, each item of a list, and each heading within findings."""
    paragraphs = _PARAGRAPH.split(text) if "\n" in text else [text]
    return "\n".join(p for p in (" ".join(p.split()) for p in paragraphs) if p)


def _stopped(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


def _joined(parts: list[Part]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for part in parts:
        texts[part.name] = f"{texts[part.name]} {part.text}" if part.name in texts else part.text
    return texts


def _outer(text: str) -> list[tuple[int, int, str, str]]:
    """Start, end, section and words of the headings of the report's own level, and of "density" and "assessment"."""
    items, numbered, several = [], [], False
    for match in _HEADING.finditer(text):
        kind = match.lastgroup if match.lastgroup not in ("mark", "number") else "line"
        heading = match[kind]
        if kind == "line" and not _is_heading(text, match):
            continue
        section = {"addendum": "addendum", "birads": "assessment"}.get(kind) or _SECTION_OF[heading.lower()]
        if match["number"]:
            numbered.append(match.start())
            several |= section in ("findings", "impression")
        items.append((match.start(), match.end(), section, heading))
    # "2. Recommendation: ..." is an item of the impression, unless the sections of this report are numbered.
    return [item for item in items if several or item[0] not in numbered]


def _is_heading(text: str, match: re.Match) -> bool:
    """Is a heading's word that begins a line one, and not the end of a sentence that wraps?"""
    heading, mark = match["line"], match["mark"][:1]
    if mark == ":" or heading.isupper() or mark and heading[0].isupper():
        return True
    return not match.start() or text[max(match.start() - 2, 0) : match.start()] in ("\n", "\n\n", ".\n", ":\n")


def _walked(text: str) -> list[tuple[int, int, str, str]]:
    """The headings that begin a section: those of the report's level, and those within findings that none begins."""
    outer = _outer(text)
    named = any(section == "findings" and heading.lower() != "report" for _, _, section, heading in outer)
    if named:  # a "Report:" above "Findings:" is a title
        outer = [
            (at, end, "report" if heading.lower() == "report" else section, heading)
            for at, end, section, heading in outer
        ]
    inner = (
        []
        if named
        else [
            (match.start(), match.end(), "inner", match["line"])
            for match in _INNER.finditer(text)
            if _is_heading(text, match)
        ]
    )
    places = {item[0] for item in inner}
    both = sorted([*(item for item in outer if item[0] not in places), *inner])
    items, name = [], "report"
    for place, (at, end, section, heading) in enumerate(both):
        if section in ("inner", "density"):
            after = next((item[2] for item in both[place + 1 :] if item[2] not in ("inner", "density")), "")
            if name not in ("report", "technique", "indication", "comparison") or not named and after in _BEFORE:
                continue
            section = "density" if named else "findings"
            end, heading = (end, heading) if named else (at, "")  # what opens the findings stays in them
        elif section == "assessment" and name == "impression":
            continue
        items.append((at, end, section, heading))
        name = section
    return items


def _with_body(parts: list[Part]) -> list[Part]:
    """The parts, with findings that no heading begins."""
    told = ("findings", *_PARTS["impression"])
    end = next((place for place, part in enumerate(parts) if part.name in told), len(parts))
    if not end:
        return parts
    followed, last, first = end < len(parts), parts[end - 1], parts[0]
    head = body = ""
    if last.name == "report" and followed:
        lines = tidy(last.text).split("\n")
        begin = next((place for place, line in enumerate(lines) if re.search(r"[.!?]$", line)), len(lines))
        head, body = "\n".join(lines[:begin]), "\n".join(lines[begin:])  # a title has no stop
    elif last.name != "report" and last.name in _BEFORE:
        head, _, body = last.text.strip().partition("\n\n")
    if body.strip():
        return [*parts[: end - 1], last._replace(text=head), Part("findings", "", body), *parts[end:]]
    if followed and parts[end].name != "findings" and len(re.findall(r"[.!?](?:\s|$)", first.text)) > 1:
        return [first._replace(name="findings"), *parts[1:]]
    return parts


def _inner_lines(text: str) -> str:
    """Headings within a text begin a line and end with a colon, so that what stands below them can be told."""

    def line(match: re.Match) -> str:
        return match[0] if match["number"] or not _is_heading(text, match) else f"\n\n{match['line']}: "

    return _INNER.sub(line, text)
