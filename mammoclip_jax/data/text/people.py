"""People and places that nobody told us of, by what stands around them: "discussed with ...", "Patient ... presents".

A word counts as a part of a name where its place asks for one and it is none of the words of words.py: in a text of
mixed case it has a capital as well. What stands in no such place is missed, and so are most names without capitals.
"""

import re
from collections.abc import Iterator

from mammoclip_jax.data.text import contexts, words
from mammoclip_jax.data.text.names import Token, mixed, protected, tokens, within


def hide_people(text: str, mark: str = "[name]") -> str:
    """`text` with `mark` where somebody's name stands by its context."""
    sequence = tokens(text)
    sequence = [token for token in sequence if not _marked(text, token)]
    finder = _Finder(text, sequence)
    return _replaced(text, finder.people(), mark)


def hide_institutions(text: str, mark: str = "[place]") -> str:
    """`text` with `mark` for hospitals, centres and practices that have a name of their own."""
    sequence = [token for token in tokens(text) if not _marked(text, token)]
    return _replaced(text, _Finder(text, sequence).institutions(), mark)


def _marked(text: str, token: Token) -> bool:
    return text[max(0, token.start - 1) : token.start] == "[" and text[token.end : token.end + 1] == "]"


def _replaced(text: str, spans: Iterator[tuple[int, int]], mark: str) -> str:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    for start, end in reversed(merged):
        text = text[:start] + mark + text[end:]
    return text


class _Finder:
    def __init__(self, text: str, tokens: list[Token]):
        self.text, self.tokens = text, tokens
        self.cased, self.eponyms = mixed(text), protected(text)
        self.at = {token.start: place for place, token in enumerate(tokens)}

    def people(self) -> Iterator[tuple[int, int]]:
        """Where names stand: start and end in the text."""
        for anchor in contexts.ANCHORS:
            for match in anchor.finditer(self.text):
                yield from self._several(match.end(), ":" not in match[0])
        for start in (contexts.PATIENT, contexts.START):
            for match in start.finditer(self.text):
                yield from self._one(match.end())
        for token in self.tokens:
            if token.capital and self.cased and self._part(token, True) and contexts.OWNS.match(self.text[token.end :]):
                yield self._particles(token), token.end
        for match in contexts.GOES_ON.finditer(self.text):
            place = self.at.get(match.end())
            if place is not None and self.cased and self._part(self.tokens[place]):
                end = self._person(place)
                if not match[1] or end - place > 1 or self._surname_first(place):
                    yield self.tokens[place].start, self._end(end)
        yield from self._given()
        if self.cased:
            yield from self._shaped()
        for match in contexts.STAFF.finditer(self.text):
            if match[1].lower() not in words.ABBREVIATIONS:
                yield match.span(1)
                yield match.span(2)
        for match in contexts.SIGNED.finditer(self.text):
            letters = re.sub(r"\W", "", match[1]).lower()
            dotted = "." in match[1] or match[0].lower().startswith("initial")
            if letters not in (words.DEGREES if dotted else words.ABBREVIATIONS | words.CLINICAL):
                yield match.start(1), match.start(1) + len(match[1].rstrip())

    def institutions(self) -> Iterator[tuple[int, int]]:
        """Where institutions stand."""
        for match in contexts.SAINT.finditer(self.text):
            place = self.at.get(match.end())
            if place is None or not self.tokens[place].capital or self.tokens[place].key in words.CLINICAL:
                continue
            end = self.tokens[place].end
            more = contexts.INSTITUTION.match(self.text, end) or contexts.OWNED.match(self.text, end)
            if more or match[0].lower().startswith(("st", "saint")):
                yield match.start(), more.end() if more else end
        for match in contexts.OF.finditer(self.text):
            place = self.at.get(match.end())
            while place is not None and place < len(self.tokens) and self._proper(self.tokens[place]):
                yield match.start(), self.tokens[place].end
                place = place + 1 if self.cased else None
        for place, token in enumerate(self.tokens):
            kind = contexts.INSTITUTION.match(self.text, token.end)
            if not kind or not self._proper(token):
                continue
            loose = contexts.FIELD_ONLY.fullmatch(kind[0])
            first = place
            while (
                first
                and self._proper(self.tokens[first - 1])
                and re.fullmatch(
                    r"[ \t-]|[ \t]&[ \t]", self.text[self.tokens[first - 1].end : self.tokens[first].start]
                )
            ):
                first -= 1
            start = self.tokens[first].start
            if not loose or contexts.WHERE.search(self.text[:start]):
                yield start, kind.end()

    def _proper(self, token: Token) -> bool:
        return self._part(token) and self._loud(token)

    def _loud(self, token: Token) -> bool:
        """A capital, in a text that has them."""
        return token.capital or not self.cased

    def _given(self) -> Iterator[tuple[int, int]]:
        """A given name and what stands beside it: "Jane Doe", "Doe, Jane M.", "Jane"."""
        for place, token in enumerate(self.tokens):
            if token.key not in words.GIVEN or self._protected(token) or (self.cased and not token.capital):
                continue
            end = self._person(place)
            start = place
            before = self.tokens[place - 1] if place else None
            gap = self.text[before.end : token.start] if before else ""
            if (
                before
                and before.key not in words.COMMON
                and self._proper(before)
                and re.fullmatch(r",[ \t]*|[ \t]", gap)
                and (self.cased or "," in gap or end == place + 1)
            ):
                start -= 1
            if self.cased or end - start > 1:
                yield self.tokens[start].start, self._end(end)

    def _shaped(self) -> Iterator[tuple[int, int]]:
        """What has a name's shape in prose: "N. Underwood", "Ann Q. Zelenka", two capitals that are no words."""
        for place, token in enumerate(self.tokens):
            end = self._person(place)
            own = self.tokens[place:end]
            if len(own) < 2 or len(own[0].key) > 1 and own[0].key in words.CLINICAL:
                continue
            rest, inner = self.text[self._end(end) :], within(self.text, token.start)
            follows = bool(re.match(r"[ \t]+[a-z]", rest)) or bool(contexts.AFTER.match(rest))
            parts = [part for part in own if len(part.key) > 1 and part.key not in words.PARTICLES]
            unknown = [part for part in parts if part.key not in words.COMMON and not part.written.isupper()]
            initials = [part for part in own if len(part.key) == 1]
            comma = "," in self.text[own[0].start : own[-1].end]
            told = any(
                (
                    contexts.PREPOSITION.search(self.text[: token.start]),
                    contexts.AFTER.match(rest),
                    contexts.ACTS.match(rest),
                )
            )
            sure = unknown or initials[1:] or contexts.PREPOSITION.search(self.text[: token.start])
            if initials and (inner or follows) and sure:
                if not (comma and not initials):
                    yield own[0].start, self._end(end)
            elif len(unknown) > 1 and (inner or follows) and self._prose(token) and (not comma or told):
                yield own[0].start, self._end(end)

    def _prose(self, token: Token) -> bool:
        """Whether most words around are in lower case: not in a title, where each has a capital."""
        place = self.at[token.start]
        around = [other for other in self.tokens[max(0, place - 8) : place + 9] if len(other.key) > 3]
        return sum(other.capital for other in around) * 2 <= len(around) + 2

    def _one(self, position: int) -> Iterator[tuple[int, int]]:
        """The name at `position`, where what follows is what people do or are."""
        place = self.at.get(position)
        if place is None:
            return
        for end in range(self._person(place, True), place, -1):
            alone = end - place == 1
            if not contexts.AFTER.match(self.text, self._end(end)):
                continue
            if alone and contexts.A_FINDING.match(self.text, self._end(end)):
                continue
            if self.cased or not alone or self.tokens[place].key in words.GIVEN:
                yield self.tokens[place].start, self._end(end)
                return

    def _several(self, position: int, sure: bool) -> Iterator[tuple[int, int]]:
        """The name at `position`, and those that "and" or a comma add; where `sure`, "Will" may be one as well."""
        place = self.at.get(position)
        while place is not None and place < len(self.tokens):
            if self.tokens[place].key in words.TITLES:
                place += 1
                continue
            end = self._person(place, sure)
            if end == place or not self.cased and end - place == 1 and self.tokens[place].key in words.COMMON:
                return
            yield self.tokens[place].start, self._end(end)
            if end == len(self.tokens):
                return
            gap = self.text[self.tokens[end - 1].end : self.tokens[end].start]
            if self.tokens[end].key == "and" and end + 1 < len(self.tokens):
                place = end + 1
            elif re.fullmatch(r"\.?[,;/][ \t]*", gap) and self.cased:
                place = end
            else:
                return

    def _end(self, place: int) -> int:
        token = self.tokens[place - 1]
        return token.end + (len(token.key) == 1 and self.text[token.end : token.end + 1] == ".")

    def _protected(self, token: Token) -> bool:
        return any(start <= token.start < end for start, end in self.eponyms)

    def _part(self, token: Token, sure: bool = False) -> bool:
        """Whether a word may be a part of a name; where `sure`, "Will" as well."""
        wordy = all(half in words.CLINICAL for half in token.key.split("-")) and not (
            sure and token.key in words.COMMON
        )
        return (
            len(token.key) > 1
            and not wordy
            and token.key not in words.PLACEHOLDERS | words.TITLES
            and not self._protected(token)
            and not re.match(r"\d", self.text[token.end : token.end + 1])
            and (token.key not in words.ABBREVIATIONS or self.cased and token.written[1:].islower())
            and not re.search(r"[\d_]$", self.text[: token.start])
        )

    def _person(self, place: int, sure: bool = False) -> int:
        """The place after the words of the name that begins at `place`; `place` itself where none does."""
        parts, last = 0, place
        for end in range(place, min(place + 6, len(self.tokens))):
            token = self.tokens[end]
            gap = self.text[self.tokens[end - 1].end : token.start] if end > place else ""
            comma = "," in gap
            if end > place and not re.fullmatch(r"[ \t]*,?[ \t]*|\.[ \t]*|[ \t]*\^", gap):
                break
            if "." in gap and len(self.tokens[end - 1].key) > 1 or comma and parts != 1:
                break
            initial = len(token.key) == 1 and token.capital
            if initial and (self.text[token.end : token.end + 1] == "." or self._followed(end) or parts > 1):
                last = end + 1 if parts else last
                continue
            if token.key in words.PARTICLES and self._followed(end) and not comma:
                continue
            if not self._part(token, sure or end > place or self._followed(end)) or token.key in words.DEGREES:
                break
            if self.cased and not token.capital:
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
        after = self.tokens[place + 1] if place + 1 < len(self.tokens) else None
        gap = self.text[self.tokens[place].end : after.start] if after else ""
        second = self.tokens[place + 2] if after and place + 2 < len(self.tokens) else None
        if second and len(after.key) == 1 and after.capital and re.fullmatch(r"[ \t]+", gap):
            return (
                self._part(second)
                and second.capital
                and bool(re.fullmatch(r"\.?[ \t]+", self.text[after.end : second.start]))
            )
        return bool(
            after
            and (re.fullmatch(r"\.?[ \t]+", gap) or gap == ", " and after.key in words.GIVEN)
            and (self._part(after) or after.key in words.PARTICLES)
            and (after.capital or not self.cased or after.key in words.PARTICLES)
        )

    def _surname_first(self, place: int) -> bool:
        """Whether what follows a comma is a given name: nothing after it goes on listing."""
        rest = contexts.INITIAL.sub("", self.text[self.tokens[place].end :])
        return bool(contexts.ENDS.match(rest) or contexts.AFTER.match(rest)) and self._loud(self.tokens[place])

    def _particles(self, token: Token) -> int:
        """Where the particles before a family name begin: the "van" of "van der Berg"."""
        place = self.at[token.start]
        while (
            place
            and self.tokens[place - 1].key in words.PARTICLES
            and re.fullmatch(r"[ \t]+", self.text[self.tokens[place - 1].end : self.tokens[place].start])
        ):
            place -= 1
        return self.tokens[place].start
