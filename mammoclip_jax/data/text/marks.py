"""Where the sentences of a text are: as characters of it, and as tokens of any tokenizer that tells its tokens' places."""

import re
from collections.abc import Sequence

from mammoclip_jax.data.text import reports

_STOP = ".!?;"
_CLAUSE = re.compile(r";\s+")  # ends a sentence of MaMA's captions too (Du et al., arXiv 2409.18119)

Span = tuple[int, int]


def spans(text: str) -> list[Span]:
    """First character, and that behind the last, of each of `reports.sentences`, and of their parts at semicolons.

    What lies between them, white space and the numbers of a list, is of no sentence.
    """
    found, place = [], 0
    for sentence in reports.sentences(text):
        words = sentence.split()  # as in the text, but for the white space between them
        start = place = text.index(words[0], place)
        for word in words:
            place = text.index(word, place) + len(word)
        for clause in _CLAUSE.finditer(text, start, place):
            found.append((start, clause.start() + 1))
            start = clause.end()
        found.append((start, place))
    return found


def separated(text: str, separator: str) -> tuple[str, list[Span]]:
    """`text` with `separator` in place of each sentence's stop, or behind its end, and the `spans` of that.

    "" leaves the text as it is.
    """
    found = spans(text)
    if not separator:
        return text, found
    made, places, last = "", [], 0
    for start, end in found:
        made += text[last:start]
        first, last = len(made), end
        made += text[start:end].rstrip(_STOP) + separator
        places.append((first, len(made)))
    return made + text[last:], places


def of_tokens(places: Sequence[Span], sentences: Sequence[Span], room: int, count: int) -> list[int]:
    """The number of each token's sentence, from 0; -1 where it has none.

    Only sentences that are whole have a number: one of which a token stands at `room` or behind it has none, nor have
    those behind the first `count`. A token is of the sentence that holds its last character, so that the white space
    before a word may be a part of it.

    Args:
        places: first character of each token and that behind its last; of special tokens both are the same.
        sentences: the same of each sentence, in order.
    """
    owners = [-1] * len(places)
    sentence = 0
    for token, (start, end) in enumerate(places):
        while sentence < len(sentences) and sentences[sentence][1] < end:
            sentence += 1
        if end > start and sentence < len(sentences) and sentences[sentence][0] < end:
            owners[token] = sentence
    cut = set(owners[room:])
    whole = [owner for owner in dict.fromkeys(owners) if owner >= 0 and owner not in cut][:count]
    numbers = {owner: number for number, owner in enumerate(whole)}
    return [numbers.get(owner, -1) for owner in owners]
