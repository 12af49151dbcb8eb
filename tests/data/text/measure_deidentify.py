"""How much of what identifies is taken out, and whether clinical sentences stay: prints the figures of docs/data.md.

Example:
    python tests/data/text/measure_deidentify.py --seed=0
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import app, flags
from identities import OTHER_SHAPES, SHAPES, UNSEEN_SHAPES, clinical, other_clinical, people, sentences

from mammoclip_jax.data.text.deidentify import deidentify


class Recall(NamedTuple):
    """Fractions of what was planted, and the sentences that fell short with what became of them."""

    with_header: float
    without: float
    missed_with: list[tuple[str, str]]
    missed_without: list[tuple[str, str]]


def recall(seed: int = 0, count: int = 500, shapes: Sequence[str] = SHAPES) -> Recall:
    """Over all names, dates, numbers and places planted: a single word of one that is left counts as a miss."""
    planted, missed = 0, ([], [])
    for sentence in sentences(count, seed, shapes):
        planted += len(sentence.planted)
        for place, known in enumerate(((sentence.names, sentence.places), ((), ()))):
            text = deidentify(sentence.text, *known)
            left = [secret for secret in sentence.planted if _left(secret, sentence.text, text)]
            missed[place].extend([(sentence.text, text)] * len(left))
    return Recall(1 - len(missed[0]) / planted, 1 - len(missed[1]) / planted, *missed)


def changed(texts: list[str], seed: int = 0) -> list[tuple[str, str]]:
    """The clinical sentences that do not stay as they are, without a header and with one whose people have names that
    are words as well ("Brown", "Mass", "Paget")."""
    told = people(len(texts), seed)
    results = ((text, {deidentify(text), deidentify(text, [name])} - {text}) for text, name in zip(texts, told))
    return [(text, min(after)) for text, after in results if after]


def _left(secret: str, before: str, text: str) -> bool:
    """Whether a word of `secret` is left in `text` as often as it is written in `before`, titles apart."""
    for word in re.findall(r"[^\W_]+", secret):
        if word in ("Dr", "M", "s", "the", "of", "at") or len(word) == 1 and not re.fullmatch(r"(?:\w\.)+", secret):
            continue
        count = [len(re.findall(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", part)) for part in (before, text)]
        if count[1] and count[1] >= count[0]:
            return True
    return False


def main(argv) -> None:
    """Prints the figures, and with --misses what fell short."""
    del argv
    seed = flags.FLAGS.seed
    for title, shapes in (("", SHAPES), (", other shapes", OTHER_SHAPES), (", unseen shapes", UNSEEN_SHAPES)):
        found = recall(seed, shapes=shapes)
        print(f"recall with the header's identities{title}  {found.with_header:.4f}")
        print(f"recall without{title}  {found.without:.4f}")
        _show(found.missed_with + found.missed_without)
    for title, texts in (("", clinical(seed=seed)), (", other sentences", other_clinical())):
        bad = changed(texts, seed)
        print(f"precision{title}  {1 - len(bad) / len(texts):.4f} of {len(texts)}")
        _show(bad)


def _show(pairs: list[tuple[str, str]]) -> None:
    for before, after in dict.fromkeys(pairs) if flags.FLAGS.misses else ():
        print(f"    {before!r}\n      -> {after!r}")


if __name__ == "__main__":
    flags.DEFINE_integer("seed", 0, "Of the sentences.")
    flags.DEFINE_bool("misses", True, "Print what was missed and what was changed as well.")
    app.run(main)
