"""People and places that nobody told us of, by what stands around them: "discussed with ...", "Patient ... presents".

A word counts as a part of a name where its place asks for one and it is none of the words of words.py: in a text of
mixed case it has a capital as well. What stands in no such place is missed, and so are most names without capitals.
"""

import re
from collections.abc import Iterator

from mammoclip_jax.data.text import words
from mammoclip_jax.data.text.names import AFTER, OWNS, Token, mixed, protected, tokens, within

_ROLES = "|".join(words.ROLES)
# After these a person stands. Each ends where the name begins.
_ANCHORS = [re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in (
    rf"\b(?:{_ROLES})s?(?:[ \t]*[,:][ \t]*|[ \t]+(?:[-–][ \t]+)?)",
    r"\b(?:discuss(?:ed|ion)|spoke|spoken|talked|conferred|consult(?:ed|ation)|correlated|met|reviewed|shared|conversation|"
    r"telephone call|phone call|call)(?:\s+(?:by\s+(?:tele)?phone|in\s+person|directly|personally|(?:these|the)\s+"
    r"(?:findings|results|images)|findings|results|today))*\s+(?:with|to)\s+",
    r"\b(?:communicated|conveyed|relayed|reported|given|faxed|sent|mailed|emailed|paged|telephoned|called|phoned|provided|"
    r"transmitted|signed\s+out|referred\s+back|copied|copy|copies|attention|explained|described|disclosed)"
    r"(?:\s+(?:by\s+(?:tele)?phone|in\s+person|directly|personally|verbally|urgently))?\s+(?:to|for)\s+",
    r"\b(?:notified|informed|contacted|paged|phoned|telephoned|called|told|thank(?:ed|s|\s+you)?,?)\s+",
    r"\b(?:seen|examined|evaluated|interviewed|supervised|cosigned|co-signed|countersigned|signed|dictated|read|reviewed|"
    r"performed|interpreted|transcribed|typed|edited|scanned|placed|obtained|accompanied|requested|ordered|referred|"
    r"approved|verified|attested|assisted|done|reported|prepared|entered|finalized|witnessed|confirmed|taken|proctored|"
    r"authenticated|positioned)(?:\s+(?:and\s+\w+|today|electronically|digitally))*\s+by\s*:?\s*",
    r"(?:^|[.;]\s+|\b)(?:cc|attn|attention|copy|copies|re|regarding|to|from|pt|patient|name|patient\s+name|tech|rad|pcp|"
    r"attending|referring|ordering|signed|signature|dictated|dictating|transcribed|author|reader|physicians?|provider|"
    r"requested|ordered|performed|interpreted|technologists?|d|t|s|reading|mother|daughter|father|next\s+of\s+kin|spouse|"
    r"emergency\s+contact|guarantor|electronically\s+signed|signed\s+electronically|e-signed|reviewed|verified|"
    r"addendum\s+by|reported|informant|contact|nok|approved|overread|over-read|read|second\s+read(?:er)?|cosigner|co-signer|report|reports|"
    r"maiden\s+name|alias|aka|formerly|operator)\s*:\s*",
    r"\b(?:under\s+the\s+)?(?:care|request|supervision|direction|courtesy|behalf|office|practice|attention|service|"
    r"guidance|name|presence)\s+of\s+(?:her\s+)?(?:\w+\s+(?=[A-Z]))?",
    r"(?:/s/|\b(?:e-?)?signed,?|--+|—)\s*", r"\b(?:aka|née|nee|formerly\s+(?:known\s+as)?|maiden\s+name|named?|alias)\s+",
    rf"\b(?:{'|'.join(words.FAMILY)}),?\s+", r"\b(?:nurse|sister|rn|np|pa)\s+", r"\bdear\s+", r"\bpatient,\s+", r"\[name\][ \t]+",
    r"\b(?:drs?|doctor|prof(?:essor)?|mr|mrs|(?-i:Ms|Miss))\b\.?[ \t]+",
    r"\b(?:mr|mrs|ms|miss|mx|drs?|prof)\b\.?\s+(?:\[name\]|\w+)(?:\s+and\s+|\s*/\s*|,\s+|;\s+)",
)]
_PATIENT = re.compile(r"\b(?:patient|pt\.?|client|this\s+is|woman|lady)[ \t]+", re.IGNORECASE)
_A_FINDING = re.compile(r"[ \t]+(?:(?:is|was)[ \t]+seen\b(?![ \t]+(?:by|for)\b)|presents?[ \t]+as\b)", re.IGNORECASE)
_START = re.compile(r"(?:^|[.;:!?,]\s+|\n\s*)", re.MULTILINE)
_PREPOSITION = re.compile(r"\b(?:by|from|to|with|for|per|of|contact|and|informed|called)[ \t]+$", re.IGNORECASE)
_GOES_ON = re.compile(r"\[name\],[ \t]+")
_STAFF = re.compile(r"(?<![\w/])([A-Z]{2,3}|\[name\])[/:]([a-z]{2,3})(?![\w/])")     # who dictated, who typed
_SIGNED = re.compile(r"(?:\b(?:signed|dictated|transcribed|typed|read|reviewed|approved|performed|scanned|initials|verified|"
                     r"technologist|tech|radiologist|reader|resident|overread|d|t)\b(?:\s*[:=]\s*|\s+by\s*:?\s*)|\binitial(?:l?ed)?\s+(?:by\s+)?|/\s?)"
                     r"(?-i:([A-Z]{2,3}|(?:[A-Z]\.\s?){2,3}))(?![\w/-])", re.IGNORECASE)
_INITIAL = re.compile(r"[ \t]+[A-Z]\b\.?")
_ENDS = re.compile(r"[ \t]*(?:$|\n|[.;|)\[])|[ \t]*,?[ \t]*\[|[ \t]+\w+(?:[ \t]\w+)?:|,?[ \t]+(?:on|at|and|in|by|is|was|who|an?|has|had|will|the|her|before|after|assisted|"
                   r""
                   r"his|regarding|to|for|with|M\.?D|D\.?O|R\.?N|DOB|MRN|ID|Acc)\b", re.IGNORECASE)
_KINDS = (r"(?:Hospital|Medical\s(?:Center|Centre|Group|Associates|Arts)|Clinics?|(?:Comprehensive\s|Women['’]?s\s)?"
          r"(?:Breast|Imaging|Cancer|Health|Diagnostic|Mammography|Radiology|Wellness|Surgery)\s(?:and\s\w+\s)?(?:Center|"
          r"Centre|Care|Institute|Clinic|Associates|Services|Partners|Group|System|Unit)|Women['’]?s\s(?:Center|Centre|"
          r"Health|Imaging|Hospital|Clinic)|Infirmary|University|Radiology|Imaging|Healthcare|Health|Mammography|Surgical\s"
          r"(?:Center|Associates)|Oncology|Diagnostics|Institute|Cancer\sCenter)")
_INSTITUTION = re.compile(rf"[ \t]+(?:(?:General|Regional|Community|Memorial|University|County|City|Valley|Health|Medical|"
                          rf"Presbyterian|Methodist|Baptist|Catholic|Jewish|Children['’]s|District|State|Advanced|Digital|"
                          rf"Outpatient|Diagnostic|Surgical|Family|Women['’]s)[ \t]+)*{_KINDS}\b", re.IGNORECASE)
_OF = re.compile(r"\b(?:University|Hospital|College|Clinic)[ \t]+of[ \t]+(?:the[ \t]+)?(?=[^\W\d_])", re.IGNORECASE)
_SAINT = re.compile(r"\b(?:St\.?|Saint|Ste\.?|Mount|Mt\.?|Our\s+Lady\s+of|Sacred|Holy)[ \t]+", re.IGNORECASE)


def hide_people(text: str, mark: str = "[name]") -> str:
    """`text` with `mark` where somebody's name stands by its context."""
    found = tokens(text)
    found = [token for token in found if not _marked(text, token)]
    finder = _Finder(text, found)
    return _replaced(text, finder.people(), mark)


def hide_institutions(text: str, mark: str = "[place]") -> str:
    """`text` with `mark` for hospitals, centres and practices that have a name of their own."""
    found = [token for token in tokens(text) if not _marked(text, token)]
    return _replaced(text, _Finder(text, found).institutions(), mark)


def _marked(text: str, token: Token) -> bool:
    return text[max(0, token.start - 1):token.start] == "[" and text[token.end:token.end + 1] == "]"


def _replaced(text: str, spans: Iterator[tuple[int, int]], mark: str) -> str:
    last = len(text)
    for start, end in sorted(set(spans), key=lambda span: (-span[1], span[0])):
        if end <= last:
            text = text[:start] + mark + text[end:]
            last = start
    return text


class _Finder:
    def __init__(self, text: str, found: list[Token]):
        self.text, self.found = text, found
        self.cased, self.eponyms = mixed(text), protected(text)
        self.at = {token.start: place for place, token in enumerate(found)}

    def people(self) -> Iterator[tuple[int, int]]:
        """Where names stand: start and end in the text."""
        for anchor in _ANCHORS:
            for match in anchor.finditer(self.text):
                yield from self._several(match.end(), ":" not in match[0])
        for match in _PATIENT.finditer(self.text):
            yield from self._one(match.end(), lambda end: bool(AFTER.match(self.text[end:])))
        for match in _START.finditer(self.text):
            yield from self._one(match.end(), lambda end: bool(AFTER.match(self.text[end:])))
        for token in self.found:
            if token.capital and self.cased and self._part(token, True) and OWNS.match(self.text[token.end:]):
                yield self._particles(token), token.end
        for match in _GOES_ON.finditer(self.text):
            place = self.at.get(match.end())
            if place is not None and self.cased and self._part(self.found[place]):
                end = self._person(place)
                if end - place > 1 or self._surname_first(place):
                    yield self.found[place].start, self._end(end)
        yield from self._given()
        if self.cased:
            yield from self._shaped()
        for match in _STAFF.finditer(self.text):
            if match[1].lower() not in words.ABBREVIATIONS:
                yield match.span(1)
                yield match.span(2)
        for match in _SIGNED.finditer(self.text):
            if match[0].lower().startswith("initial") or (
                    re.sub(r"\W", "", match[1]).lower() not in words.ABBREVIATIONS | words.CLINICAL):
                yield match.start(1), match.start(1) + len(match[1].rstrip())

    def institutions(self) -> Iterator[tuple[int, int]]:
        """Where institutions stand."""
        for match in _SAINT.finditer(self.text):
            place = self.at.get(match.end())
            if place is not None and self.found[place].capital and self.found[place].key not in words.CLINICAL:
                token = self.found[place]
                kind = re.match(r"(?:['’]s)?" + _INSTITUTION.pattern, self.text[token.end:], re.IGNORECASE)
                if kind or re.match(r"['’]s\b", self.text[token.end:]) or match[0].lower().startswith(("st", "saint")):
                    owned = re.match(r"['’]s\b", self.text[token.end:])
                    yield match.start(), token.end + (kind.end() if kind else owned.end() if owned else 0)
        for match in _OF.finditer(self.text):
            place = self.at.get(match.end())
            while place is not None and place < len(self.found) and self._part(self.found[place]) and self._loud(
                    self.found[place]) and (self.cased or place == self.at[match.end()]):
                yield match.start(), self.found[place].end
                place += 1
        for place, token in enumerate(self.found):
            kind = re.match(r"(?:['’]s?)?" + _INSTITUTION.pattern, self.text[token.end:], re.IGNORECASE)
            if not kind or not self._part(token) or not self._loud(token):
                continue
            first = place
            while first and self._part(self.found[first - 1]) and self._loud(self.found[first - 1]) and re.fullmatch(
                    r"[ \t-]|[ \t]&[ \t]", self.text[self.found[first - 1].end:self.found[first].start]):
                first -= 1
            yield self.found[first].start, token.end + kind.end()

    def _loud(self, token: Token) -> bool:
        """A capital in a text that has them; in one of capitals or none a word that is no word at all."""
        return token.capital if self.cased else token.key not in words.COMMON

    def _given(self) -> Iterator[tuple[int, int]]:
        """A given name and what stands beside it: "Jane Doe", "Doe, Jane M.", "Jane"."""
        for place, token in enumerate(self.found):
            if token.key not in words.GIVEN or self._protected(token) or (self.cased and not token.capital):
                continue
            end = self._person(place)
            start = place
            before = self.found[place - 1] if place else None
            gap = self.text[before.end:token.start] if before else ""
            if before and re.fullmatch(r",[ \t]*|[ \t]", gap) and self._part(before) and before.key not in words.COMMON \
                    and self._loud(before) and (self.cased or gap.strip() == "," or end == place + 1):
                start -= 1
            if self.cased or end - start > 1:
                yield self.found[start].start, self._end(end)

    def _shaped(self) -> Iterator[tuple[int, int]]:
        """What has a name's shape in running prose: "N. Underwood", "Ann Q. Zelenka", two capitals that are no words."""
        for place, token in enumerate(self.found):
            end = self._person(place)
            own = self.found[place:end]
            if len(own) < 2 or len(own[0].key) > 1 and own[0].key in words.CLINICAL:
                continue
            rest, inner = self.text[self._end(end):], within(self.text, token.start)
            follows = bool(re.match(r"[ \t]+[a-z]", rest)) or bool(AFTER.match(rest))
            parts = [part for part in own if len(part.key) > 1 and part.key not in words.PARTICLES]
            unknown = [part for part in parts if part.key not in words.COMMON and not part.written.isupper()]
            initials = [part for part in own if len(part.key) == 1]
            comma = "," in self.text[own[0].start:own[-1].end]
            if initials and len(parts) + len(initials) > 1 and (inner or follows and parts) and unknown + initials[1:]:
                if not (comma and not initials):
                    yield own[0].start, self._end(end)
            elif len(unknown) > 1 and (inner or follows) and self._prose(token) and (
                    not comma or _PREPOSITION.search(self.text[:token.start]) or AFTER.match(rest)):
                yield own[0].start, self._end(end)

    def _prose(self, token: Token) -> bool:
        """Whether most words around are in lower case: not in a title, where each has a capital."""
        place = self.at[token.start]
        around = [other for other in self.found[max(0, place - 8):place + 9] if len(other.key) > 3]
        return sum(other.capital for other in around) * 2 <= len(around) + 2

    def _one(self, position: int, follows) -> Iterator[tuple[int, int]]:
        place = self.at.get(position)
        if place is None:
            return
        for end in range(self._person(place, True), place, -1):
            finding = end - place == 1 and _A_FINDING.match(self.text[self._end(end):])
            if follows(self._end(end)) and not finding and (self.cased or end - place > 1 or self.found[place].key in words.GIVEN):
                yield self.found[place].start, self._end(end)
                return

    def _several(self, position: int, sure: bool) -> Iterator[tuple[int, int]]:
        """The name at `position`, and those that "and" or a comma add to it; where `sure`, "Will" may be one as well."""
        place = self.at.get(position)
        while place is not None and place < len(self.found):
            if self.found[place].key in words.TITLES:
                place += 1
                continue
            end = self._person(place, sure)
            if end == place or not self.cased and end - place == 1 and self.found[place].key in words.COMMON:
                return
            yield self.found[place].start, self._end(end)
            if end == len(self.found):
                return
            gap = self.text[self.found[end - 1].end:self.found[end].start]
            if self.found[end].key == "and" and end + 1 < len(self.found):
                place = end + 1
            elif re.fullmatch(r"\.?[,;/][ \t]*", gap) and self.cased:
                place = end
            else:
                return

    def _end(self, place: int) -> int:
        token = self.found[place - 1]
        return token.end + (len(token.key) == 1 and self.text[token.end:token.end + 1] == ".")

    def _protected(self, token: Token) -> bool:
        return any(start <= token.start < end for start, end in self.eponyms)

    def _part(self, token: Token, sure: bool = False) -> bool:
        """Whether a word may be a part of a name; where `sure`, "Will" as well."""
        wordy = token.key in words.CLINICAL and not (sure and token.key in words.COMMON)
        return (len(token.key) > 1 and not wordy and token.key not in words.PLACEHOLDERS | words.TITLES
                and not self._protected(token) and not re.match(r"\d", self.text[token.end:token.end + 1])
                and (token.key not in words.ABBREVIATIONS or self.cased and token.written[1:].islower())
                and not re.search(r"[\d_]$", self.text[:token.start]))

    def _person(self, place: int, sure: bool = False) -> int:
        """The place after the words of the name that begins at `place`; `place` itself where none does."""
        parts, last = 0, place
        for end in range(place, min(place + 6, len(self.found))):
            token = self.found[end]
            gap = self.text[self.found[end - 1].end:token.start] if end > place else ""
            comma = "," in gap
            if end > place and not re.fullmatch(r"[ \t]*,?[ \t]*|\.[ \t]*|[ \t]*\^", gap):
                break
            if "." in gap and len(self.found[end - 1].key) > 1 or comma and parts != 1:
                break
            initial = len(token.key) == 1 and token.capital
            if initial and (self.text[token.end:token.end + 1] == "." or self._followed(end) or parts > 1):
                last = end + 1 if parts else last
                continue
            if token.key in words.PARTICLES and self._followed(end) and not comma:
                continue
            if not self._part(token, sure or end > place or self._followed(end)) or (self.cased and not token.capital) or token.key in words.DEGREES:
                break
            if not self.cased and token.key in words.COMMON and not parts and not self._followed(end):
                break
            if comma and token.key not in words.GIVEN and not self._surname_first(end):
                break
            parts += 1
            last = end + 1
            if parts == 4:
                break
        return last if parts else place

    def _followed(self, place: int) -> bool:
        """Whether a part of a name follows the word at `place`."""
        after = self.found[place + 1] if place + 1 < len(self.found) else None
        gap = self.text[self.found[place].end:after.start] if after else ""
        second = self.found[place + 2] if after and place + 2 < len(self.found) else None
        if second and len(after.key) == 1 and after.capital and re.fullmatch(r"[ \t]+", gap):
            return self._part(second) and second.capital and bool(
                re.fullmatch(r"\.?[ \t]+", self.text[after.end:second.start]))
        return bool(after and (re.fullmatch(r"\.?[ \t]+", gap) or gap == ", " and after.key in words.GIVEN)
                    and (self._part(after) or after.key in words.PARTICLES) and (after.capital or not self.cased
                                                                              or after.key in words.PARTICLES))

    def _surname_first(self, place: int) -> bool:
        """Whether what follows a comma is a given name: nothing after it goes on listing."""
        rest = _INITIAL.sub("", self.text[self.found[place].end:])
        return bool(_ENDS.match(rest) or AFTER.match(rest)) and self._loud(self.found[place])

    def _particles(self, token: Token) -> int:
        """Where the particles before a family name begin: the "van" of "van der Berg"."""
        place = self.at[token.start]
        while place and self.found[place - 1].key in words.PARTICLES and re.fullmatch(
                r"[ \t]+", self.text[self.found[place - 1].end:self.found[place].start]):
            place -= 1
        return self.found[place].start
