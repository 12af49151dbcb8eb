"""Back-translation of a data set's texts, once and offline: English to another language and back.

Example:
    python -m mammoclip_jax.data.text.augment_text --data=prepared/upmc --model=hf://Helsinki-NLP/opus-mt-en-it \
        --back=hf://Helsinki-NLP/opus-mt-it-en

Needs torch and sentencepiece, which nothing else here does. Writes DATA/texts_augmented.parquet, which training draws
from with probability config.data.augmented. A translation that says something else (a finding denied or no longer
denied, another side, another number or clock hour) is dropped and counted.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from absl import app, flags

from mammoclip_jax.data.store import side_tables
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.data.text import reports
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import on_hub

TABLE = "texts_augmented"  # the side table of a data set
JOURNAL = "texts_augmented.jsonl"  # what is done so far; removed at the end
Translate = Callable[[Sequence[str], int], list[str]]  # texts, seed -> as many texts
_GUARDED = (
    "mass",
    "calcification",
    "microcalcification",
    "asymmetr",
    "distortion",
    "thickening",
    "retraction",
    "adenopathy",
    "lymph node",
    "malignan",
    "abnormal",
    "suspicious",
    "cyst",
    "lesion",
    "nodule",
)


def augment(folder: str | Path, translate: Translate, *, model: str, batch: int = 32, seed: int = 42) -> dict[str, int]:
    """Writes `folder`/texts_augmented.parquet (columns text, augmented) for the texts of the training split.

    Args:
        folder: a prepared data set.
        translate: texts and a seed to back-translated texts, in the same order.
        model: names the translation; work begun under another one is not gone on with.

    A run that was killed goes on after its last whole batch, and ends with the same file.
    Returns counts: texts, kept, empty, same, negation, side, number. Raises UserError: the folder is no data set.
    """
    folder = Path(folder)
    if not (folder / "index.parquet").is_file():
        raise UserError(f"{folder} is no data set folder: it has no index.parquet. Give what prepare wrote.")
    index = read_table(folder / "index.parquet", columns=["texts", "split"])
    drawn = (text.strip() for texts in index["texts"][index["split"] == "train"] for text in texts)
    texts = list(dict.fromkeys(text for text in drawn if text))
    journal = folder / JOURNAL
    heading = {"model": model, "batch": batch, "seed": seed}
    done = _read(journal, heading, texts)
    with open(journal, "w", encoding="utf-8") as file:
        for record in (heading, *(list(pair) for pair in done)):
            print(json.dumps(record), file=file)
        for start in range(len(done), len(texts), batch):
            part = texts[start : start + batch]
            translations = translate(part, seed + start)
            if len(translations) != len(part):
                raise UserError(f"the translator gave {len(translations)} texts for {len(part)}")
            for pair in zip(part, translations, strict=True):
                done.append(pair)
                print(json.dumps(list(pair)), file=file)
            file.flush()
    reasons = [fault(text, other) for text, other in done]
    kept = [pair for pair, reason in zip(done, reasons, strict=True) if not reason]
    side_tables.write_frame(folder, TABLE, pd.DataFrame(kept, columns=["text", "augmented"], dtype="str"))
    journal.unlink()
    counts = Counter(reasons)
    return {"texts": len(texts), "kept": len(kept)} | {
        reason: counts[reason] for reason in ("empty", "same", "negation", "side", "number")
    }


def _read(journal: Path, heading: dict, texts: list[str]) -> list[tuple[str, str]]:
    """The pairs of an earlier run of the same work, up to the last whole batch."""
    done: list[tuple[str, str]] = []
    if journal.is_file():
        first, *lines = journal.read_text(encoding="utf-8").split("\n")
        for expected, line in zip(texts, lines[:-1] if first == json.dumps(heading) else [], strict=False):
            pair = json.loads(line)
            if pair[0] != expected:
                break
            done.append(tuple(pair))
    return done if len(done) == len(texts) else done[: len(done) // heading["batch"] * heading["batch"]]


def fault(text: str, other: str) -> str:
    """Why `other` cannot stand for `text`: "empty", "same", "negation", "side", "number"; "" where it can."""
    if not re.search(r"\w", other):
        return "empty"
    if " ".join(other.lower().split()) == " ".join(text.lower().split()):
        return "same"
    for term in _GUARDED:
        if _said(text, term) != _said(other, term):
            return "negation"
    if reports.sides(text) != reports.sides(other):
        return "side"
    return "" if Counter(re.findall(r"\d+", text)) == Counter(re.findall(r"\d+", other)) else "number"


def _said(text: str, term: str) -> set[bool]:
    """Whether the sentences that name a term deny it: empty where none does."""
    return {
        reports.negated(sentence, term)
        for sentence in reports.sentences(text)
        if re.search(rf"\b{term}", sentence, re.IGNORECASE)
    }


def alternatives(folder: str | Path) -> dict[str, tuple[str, ...]]:
    """Text to its augmented texts, of a data set folder. Raises UserError: it has none."""
    frame = side_tables.read_frame(
        folder,
        TABLE,
        f"run python -m mammoclip_jax.data.text.augment_text --data={folder} first, or set config.data.augmented=0",
    )
    return {text: tuple(part) for text, part in frame.groupby("text", sort=False)["augmented"]}


def translator(forth: str, back: str, temperature: float = 1.5, beams: int = 5) -> Translate:
    """Back-translation by two Hugging Face models, sampled as Mammo-CLIP does (temperature 1.5, 5 beams).

    Raises:
        UserError: torch or sentencepiece is not installed, or a model cannot be loaded.
    """
    try:
        import sentencepiece  # noqa: F401  (the tokenizers of the Marian models load it)
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed
        from transformers.utils import is_torch_available
    except ImportError as error:
        raise UserError(
            f"back-translation needs {error.name}: pip install torch transformers[sentencepiece]"
        ) from error
    if not is_torch_available():
        raise UserError("back-translation needs torch: pip install torch transformers[sentencepiece]")
    try:
        pairs = [
            (
                AutoTokenizer.from_pretrained(name, local_files_only=not ask),
                AutoModelForSeq2SeqLM.from_pretrained(name, local_files_only=not ask).eval(),
            )
            for name, ask in map(on_hub, (forth, back))
        ]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {forth} and {back}: {error}") from error

    def translate(texts: Sequence[str], seed: int) -> list[str]:
        set_seed(seed)
        for tokenizer, model in pairs:
            inputs = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
            ids = model.generate(**inputs, do_sample=True, temperature=temperature, num_beams=beams)
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return list(texts)

    return translate


def main(argv) -> int:
    """The command; 2 where the input is wrong. Not by mammoclip_jax.command, which lies above this folder."""
    del argv
    options = flags.FLAGS
    try:
        counts = augment(
            options.data,
            translator(options.model, options.back),
            batch=options.batch,
            seed=options.seed,
            model=f"{options.model} {options.back}",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(counts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Data set folder.", required=True)
    flags.DEFINE_string("model", "hf://Helsinki-NLP/opus-mt-en-it", "Model from English: a hub name or a folder.")
    flags.DEFINE_string("back", "hf://Helsinki-NLP/opus-mt-it-en", "Model back to English.")
    flags.DEFINE_integer("batch", 32, "Texts translated at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 42, "Of the sampling.")
    flags.DEFINE_string("json", "", "Write the counts here.")
    app.run(main)
