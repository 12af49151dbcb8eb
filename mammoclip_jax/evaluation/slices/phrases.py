"""Hypotheses from the sentences that were retrieved: a lexicon's phrases and n-grams that stand in them more than elsewhere.

A phrase that a sentence denies is another word than the phrase itself: in the class that a shortcut speaks against, the
sentences of the right decisions deny the attribute. Both words speak for the same hypothesis.

How much more is a log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' words",
section 3.4):

    z = (log((y + a) / (n + a0 - y - a)) - log((y' + a) / (n' + a0 - y' - a))) / sqrt(1 / (y + a) + 1 / (y' + a))

y of n are among the retrieved, y' of n' among the rest, a of a0 in the prior. There n counts words; here it counts
sentences, of which each has a phrase or not, so that z does not depend on which other phrases are looked at. The prior is
the share of the whole bank's sentences that have the phrase.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.text.reports import negated
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis, of_phrase

LEXICON = Path(__file__).with_name("lexicon.json")
LONGEST = 4  # words of an n-gram; a lexicon's phrases may have one more
LEAST_Z = 2.5
LEAST_COUNT = 3  # sentences among the retrieved
MOST = 10  # hypotheses of one end of the list
PRIOR = 10.0  # sentences that the prior is worth
MOST_PROMPTS = 40  # sentences of the bank that say a hypothesis is there, or is not
_SAME = 0.8  # share of two phrases' sentences in common from which on they are one hypothesis
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_PARTS = re.compile(r"[^,.;:!?()]+")
# What no n-gram begins or ends with.
_EMPTY = frozenset(
    """
a an the this that these those there here is are was were be been being has have had do does did of in on at to for
from by with within without near along around above below beside and or nor but as than then no not it its which who
may might can could should would will also any some all both each other more most very into over under between during
since seen noted identified present shown shows show demonstrate demonstrates evident visible evidence finding
findings include includes mammogram image breast breasts patient
""".split()
)
# Words of the assessment, in the singular, which say the class over again: no n-gram has one.
_ASSESSMENT = frozenset(
    """
bi rad birad category assessment impression conclusion benign malignant malignancy suspicious suggestive probably
likely highly recommend recommended recommendation biopsy follow routine management
""".split()
)
_SIDES = frozenset(("left", "right", "bilateral", "breast", "side", "view"))  # alone they are the column laterality
Key = tuple[str, ...]


class Phrase(NamedTuple):
    """An entry of a lexicon."""

    name: str
    also: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """A phrase that stands out at one end of the list of sentences."""

    hypothesis: Hypothesis
    denied: bool  # whether it is its denial that stands out
    z: float
    count: int  # sentences among the retrieved


def log_odds(top, rest, prior, totals: tuple[float, float, float] | None = None) -> np.ndarray:
    """Float64 [w]: the z above of each of w phrases, from its counts among the retrieved and the rest and its prior.

    `totals`: (n, n', a0); None: the sums of the counts and of the prior.
    """
    top, rest, prior = (np.asarray(x, np.float64) for x in (top, rest, prior))
    n_top, n_rest, all_prior = totals or (top.sum(), rest.sum(), prior.sum())

    def odds(counts, n):
        return np.log((counts + prior) / (n + all_prior - counts - prior))

    return (odds(top, n_top) - odds(rest, n_rest)) / np.sqrt(1 / (top + prior) + 1 / (rest + prior))


@functools.cache
def lexicon(path: str | Path = LEXICON) -> tuple[Phrase, ...]:
    """The phrases of a lexicon file: {"groups": {group: [phrase, or {"name", "also", "against"}]}}.

    Raises:
        UserError: no such file, or a mistake in it.
    """
    try:
        groups = json.loads(Path(path).read_text(encoding="utf-8"))["groups"]
        made = tuple(_phrase(entry) for entries in groups.values() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no lexicon ({type(error).__name__}: {error}): it should be "
            '{"groups": {"findings": ["mass", {"name": "calcification", "also": ["microcalcification"]}]}}.'
        ) from error
    twice = [key for key, times in Counter(key for one in made for key in _keys(one)).items() if times > 1]
    if twice:
        raise UserError(f"lexicon {path} has {' '.join(twice[0])!r} twice: take one of them out.")
    return made


def _phrase(entry: Any) -> Phrase:
    if isinstance(entry, str):
        return Phrase(entry)
    return Phrase(entry["name"], tuple(entry.get("also", ())), tuple(entry.get("against", ())))


def _keys(phrase: Phrase) -> set[Key]:
    """The words of a phrase and of what else it is called, in the form of `words`."""
    return {tuple(stem for stem, *_ in words(text)) for text in (phrase.name, *phrase.also)}


def words(text: str) -> Iterator[tuple[str, int, int]]:
    """(word in the singular and lower case, start, end) of each word."""
    for match in _WORD.finditer(text):
        yield _singular(match[0].lower()), *match.span()


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "shes", "ches", "xes")) else word[:-1]


def n_grams(sentence: str, longest: int = LONGEST + 1) -> dict[Key, str]:
    """{words: as they stand there}: of 1 to `longest` words, none across a comma or stop; the first of each."""
    found: dict[Key, str] = {}
    for part in _PARTS.finditer(sentence):
        spans = list(words(part[0]))
        for start in range(len(spans)):
            for end in range(start + 1, min(start + longest, len(spans)) + 1):
                key = tuple(stem for stem, *_ in spans[start:end])
                found.setdefault(key, part[0][spans[start][1] : spans[end - 1][2]])
    return found


class Phrases:
    """The phrases of a bank of sentences; what is read of a sentence is read once, however often it is retrieved."""

    def __init__(self, texts: Sequence[str], entries: Sequence[Phrase] = (), leave_out: Iterable[str] = ()):
        """`entries`: a lexicon; () for the package's own. `leave_out`: words of the class itself, no hypotheses."""
        self.texts = [" ".join(text.split()) for text in texts]
        self.entries = tuple(entries) or lexicon()
        self._of_entry = {key: place for place, entry in enumerate(self.entries) for key in _keys(entry)}
        self._without = {tuple(stem for stem, *_ in words(text)) for text in leave_out} - {()}
        self._found = [n_grams(text) for text in self.texts]
        self._denied: dict[tuple[int, str], bool] = {}

    def candidates(
        self, retrieved: Sequence[int], *, least_z: float = LEAST_Z, least: int = LEAST_COUNT, most: int = MOST
    ) -> list[Candidate]:
        """What stands out among the sentences at these places of the bank, the lexicon's phrases before n-grams.

        Phrases that stand in nearly the same sentences of the bank, and n-grams that only lengthen or shorten one, are one.
        What no sentence of the bank affirms is in no image, and so no hypothesis.
        """
        chosen = set(map(int, retrieved))
        names = self._names(chosen, least)
        counts = {True: Counter(), False: Counter()}  # among the retrieved, among the rest
        where: dict[tuple[int | Key, bool], set[int]] = {}
        for place, found in enumerate(self._found):
            said = {(names[key], self._denies(place, text)) for key, text in found.items() if key in names}
            counts[place in chosen].update(said)
            for word in said:
                where.setdefault(word, set()).add(place)
        vocabulary = sorted(set(counts[True]) | set(counts[False]), key=repr)
        if not vocabulary:
            return []
        top, rest = (np.array([counts[inside][word] for word in vocabulary], float) for inside in (True, False))
        share = (top + rest) / len(self.texts)
        # Of a phrase that every sentence has nothing can be said.
        share = np.minimum(share, 1 - 0.5 / len(self.texts))
        z = log_odds(top, rest, PRIOR * share, (len(chosen), len(self.texts) - len(chosen), PRIOR))
        order = sorted(np.flatnonzero((z > least_z) & (top >= least)), key=lambda i: (_gram(vocabulary[i]), -z[i]))
        kept: list[tuple[int | Key, bool]] = []
        made: list[Candidate] = []
        for i in order:
            word = vocabulary[i]
            affirmed = (word[0], False) in where
            if len(made) < most and affirmed and not any(self._same(word, other, where) for other in kept):
                kept.append(word)
                made.append(Candidate(self._hypothesis(word[0], where), word[1], float(z[i]), int(top[i])))
        return sorted(made, key=lambda one: -one.z)

    def _names(self, chosen: set[int], least: int) -> dict[Key, int | Key]:
        """What each n-gram that may stand out counts as: a place of the lexicon, or itself."""
        times = Counter(key for place in chosen for key in self._found[place])
        names: dict[Key, int | Key] = {}
        for key, entry in self._of_entry.items():
            if not self._of_class(key):
                names[key] = entry
        for key, count in times.items():
            if (
                count >= least
                and len(key) <= LONGEST
                and key not in names
                and not self._of_class(key)
                and _telling(key)
            ):
                names[key] = key
        return names

    def _of_class(self, key: Key) -> bool:
        return any(key[i : i + len(own)] == own for own in self._without for i in range(len(key)))

    def _denies(self, place: int, text: str) -> bool:
        if (place, text) not in self._denied:
            self._denied[place, text] = negated(self.texts[place], text)
        return self._denied[place, text]

    def _same(self, word, other, where) -> bool:
        mine, others = where[word], where[other]
        if len(mine & others) >= _SAME * len(mine | others):
            return True
        if isinstance(word[0], int):
            return False
        keys = _keys(self.entries[other[0]]) if isinstance(other[0], int) else {other[0]}
        return any(_within(word[0], key) or _within(key, word[0]) for key in keys)

    def _hypothesis(self, word: int | Key, where) -> Hypothesis:
        """Of a phrase, in the bank's own sentences that affirm it and, where some do, that deny it; else against the others.

        A dual encoder knows sentences like those that it has read, and little of a template with a phrase in it.
        """
        if isinstance(word, int):
            entry = self.entries[word]
            one = of_phrase(entry.name, "lexicon", against=entry.against)
        else:
            surfaces = Counter(found[word].lower() for found in self._found if word in found)
            entry, one = None, of_phrase(min(surfaces, key=lambda text: (-surfaces[text], text)), "n-gram")
        affirm, deny = (sorted(where.get((word, denied), ())) for denied in (False, True))
        if len(affirm) < LEAST_COUNT:
            return one
        if len(deny) < LEAST_COUNT:
            deny = [] if entry and entry.against else sorted(set(range(len(self.texts))) - {*affirm, *deny})
        return one._replace(positive=self._some(affirm), negative=self._some(deny) or one.negative)

    def _some(self, places: Sequence[int]) -> tuple[str, ...]:
        """At most MOST_PROMPTS of the sentences at these places, evenly."""
        step = -(-len(places) // MOST_PROMPTS) or 1
        return tuple(self.texts[place] for place in places[::step])


def _gram(word) -> bool:
    return not isinstance(word[0], int)


def _telling(key: Key) -> bool:
    """Whether an n-gram may be a name: it neither begins nor ends with an empty word, is no number, side or assessment."""
    if key[0] in _EMPTY or key[-1] in _EMPTY or _SIDES.issuperset(key) or not _ASSESSMENT.isdisjoint(key):
        return False
    return any(len(word) > 2 and word.isalpha() for word in key)


def _within(short: Key, long: Key) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
