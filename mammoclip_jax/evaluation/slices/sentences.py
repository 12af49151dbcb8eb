"""The bank of sentences in which errors are looked for: of reports, a file, prompts, or captions made of metadata."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mammoclip_jax.data.text import reports, templating
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import prompt_files

LEAST_WORDS = 2  # "Negative." says what the label says
MOST = 20_000  # sentences of a bank, the commonest


def of_reports(rows: pd.DataFrame) -> list[str]:
    """The sentences of the texts of an index's rows; a breast's texts, which stand in the rows of its images, count once."""
    texts = {text for texts in rows["texts"] for text in texts}
    return bank(sentence for text in sorted(texts) for sentence in reports.sentences(text))


def of_file(path: str | Path) -> list[str]:
    """The sentences of a text file, in UTF-8.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({type(error).__name__}): give a file of sentences.") from error
    found = bank(sentence for line in text.splitlines() for sentence in reports.sentences(line))
    if not found:
        raise UserError(f"{path} holds no sentence of {LEAST_WORDS} words or more.")
    return found


def of_prompts(name: str) -> list[str]:
    """All texts of a prompt file, by its name or path: of both sides and of all classes.

    Raises:
        UserError: as `prompt_files.load`.
    """
    prompts = prompt_files.load(name)
    texts = [text for pair in prompts.pairs.values() for side in pair for text in side]
    texts += [text for classes in prompts.classes.values() for side in classes.values() for text in side]
    return bank(sentence for text in texts for sentence in reports.sentences(text))


def of_captions(rows: pd.DataFrame, template: str, seed: int = 0) -> list[str]:
    """The sentences of a caption (`data/text/templates`) of each row: what the tables say of it, in words.

    Raises:
        UserError: there is no such template.
    """
    made, rng = templating.load(template), np.random.default_rng(seed)
    texts = []
    for row in rows.itertuples():
        fields = json.loads(row.labels) | {
            "laterality": row.laterality,
            "view": row.view,
            "boxes": json.loads(row.boxes),
        }
        texts.append(templating.render(made, fields, rng, dropout=0.0))
    return bank(sentence for text in texts for sentence in reports.sentences(text))


def bank(sentences: Iterable[str], most: int = MOST) -> list[str]:
    """Each of the sentences once, in the order of their alphabet; of more than `most` the commonest."""
    counts: dict[str, int] = {}
    for sentence in sentences:
        text = " ".join(sentence.split())
        if len(text.split()) >= LEAST_WORDS:
            counts[text] = counts.get(text, 0) + 1
    commonest = sorted(counts, key=lambda text: (-counts[text], text))[:most]
    return sorted(commonest)


def together(banks: Sequence[Sequence[str]]) -> list[str]:
    """All sentences of several banks, each once, in the order of their alphabet."""
    return sorted({sentence for one in banks for sentence in one})
