"""How much of what identifies is taken out, and whether clinical sentences stay: prints the figures of docs/data.md.

Example:
    python tests/data/text/measure_deidentify.py --seed=0
"""

import re
from typing import NamedTuple

from absl import app, flags
from identities import clinical, people, sentences

from mammoclip_jax.data.text.deidentify import deidentify


class Measured(NamedTuple):
    """Fractions, and the sentences that fell short with what became of them."""

    with_header: float
    without: float
    precision: float
    missed_with: list[tuple[str, str]]
    missed_without: list[tuple[str, str]]
    changed: list[tuple[str, str]]


def measure(seed: int = 0, count: int = 500, clinical_count: int = 300) -> Measured:
    """Recall over what is planted: names, dates, numbers, places; a single word of it that is left counts as a miss.

    Precision: the fraction of clinical sentences that stay as they are, each with people of a header known that are
    words as well ("Brown", "Mass", "Paget"), and without.
    """
    planted, missed = 0, ([], [])
    for sentence in sentences(count, seed):
        planted += len(sentence.planted)
        for place, known in enumerate(((sentence.names, sentence.places), ((), ()))):
            text = deidentify(sentence.text, *known)
            missed[place].extend((sentence.text, text) for secret in sentence.planted if _left(secret, sentence.text, text))
    changed, told = [], people(clinical_count, seed)
    for text, name in zip(clinical(clinical_count, seed), told):
        changed += [(text, after) for after in {deidentify(text), deidentify(text, [name])} if after != text]
    unchanged = clinical_count - len({text for text, _ in changed})
    return Measured(1 - len(missed[0]) / planted, 1 - len(missed[1]) / planted, unchanged / clinical_count, *missed, changed)


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
    """Prints the three figures, and with --misses what fell short."""
    del argv
    found = measure(flags.FLAGS.seed)
    print(f"recall with the header's identities {found.with_header:.4f}\nrecall without {found.without:.4f}\n"
          f"precision {found.precision:.4f}")
    for title, pairs in (("missed with", found.missed_with), ("missed without", found.missed_without),
                         ("changed", found.changed)) if flags.FLAGS.misses else ():
        print(f"\n{title}: {len(pairs)}")
        for before, after in pairs:
            print(f"  {before!r}\n    -> {after!r}")


if __name__ == "__main__":
    flags.DEFINE_integer("seed", 0, "Of the sentences.")
    flags.DEFINE_bool("misses", True, "Print what was missed and what was changed.")
    app.run(main)
