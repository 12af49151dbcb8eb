"""Hypotheses by a language model: asked once for each list of sentences, answered in JSON, checked, kept on disk.

What a model says is data. It is parsed as JSON and held against the form below, and nothing of it is ever executed; an
answer of another form is refused, and shown. Two models are here: one of transformers in a folder on this machine, and
one behind HTTP, which nothing uses unless it is named. Sentences may be those of patients' reports: what goes out of this
machine holds the names of phrases alone, unless `patient_text` is set.
"""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.files import write_text

MOST = 10  # hypotheses of one answer
PROMPTS = 5  # sentences on either side of one
LONGEST = 200  # characters of a sentence; a name has fewer
_SHOWN = 500  # characters of an answer that an error quotes
_NEEDED = "pip install mammoclip_jax[recognise]"

QUESTION = """A classifier of mammograms decides whether an image shows: {label}.
Its decisions on images where the truth is "{truth}" were compared. Sentences nearer to those that it decides rightly:
{right}
Sentences nearer to those that it decides wrongly:
{wrong}
Name attributes of the image, the patient or the exam, other than {label} itself, that may go with its errors: at most {most}.
For each give {prompts} sentences that say the attribute is there, and {prompts} that say it is not.
Answer with one JSON object and nothing else, of this form:
{{"hypotheses": [{{"name": "surgical clip", "positive": ["There is a clip."], "negative": ["There is no clip."]}}]}}
"""
AGAIN = "\nYour last answer could not be used: {fault}. Answer with the JSON object alone.\n"


class LanguageModel(NamedTuple):
    """Something that answers a prompt with a text."""

    name: str  # says which it is, for the cache and the protocol; no path, no key
    answer: Callable[[str], str]
    patient_text: bool  # whether it may be shown sentences of reports


def ask(
    model: LanguageModel,
    label: str,
    truth: str,
    right: Sequence[str],
    wrong: Sequence[str],
    *,
    phrases: tuple[Sequence[str], Sequence[str]] = ((), ()),
    folder: str | Path = "",
    attempts: int = 2,
) -> list[Hypothesis]:
    """The model's hypotheses, from sentences of both ends of one class's list.

    Args:
        label, truth: the class in words, such as "cancer" and "no cancer".
        right, wrong: sentences; in their place `phrases`, names of phrases that stand out in either, go to a model that may
            not see the text of patients.
        folder: keeps answers that have the form, by prompt and model; "": nothing is kept.
        attempts: how often it is asked; each time it is told what was wrong with the last answer.

    Raises:
        UserError: no answer had the form; holds the last.
    """
    shown = (right, wrong) if model.patient_text else phrases
    lines = ["\n".join(f"- {text}" for text in texts) or "- (none)" for texts in shown]
    prompt = QUESTION.format(label=label, truth=truth, right=lines[0], wrong=lines[1], most=MOST, prompts=PROMPTS)
    fault, answer = "", ""
    for _ in range(attempts):
        asked = prompt + (AGAIN.format(fault=fault) if fault else "")
        path = _path(model, asked, folder)
        kept = _read(path, model, asked)
        answer = model.answer(asked) if kept is None else kept
        try:
            found = parse(answer)
        except Malformed as error:
            fault = str(error)
            continue
        if path and kept is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"model": model.name, "prompt": asked, "answer": answer}, indent=1) + "\n")
        return [one._replace(source=f"language model {model.name}") for one in found]
    raise UserError(
        f"the language model {model.name} gave no hypotheses in {attempts} answers: {fault}. Its last answer: "
        f"{_cut(answer)!r}. Take another model, or the lexicon, which needs none."
    )


class Malformed(ValueError):
    """What is wrong with an answer."""


def parse(answer: str) -> list[Hypothesis]:
    """Hypotheses of an answer in JSON, with or without a Markdown fence around it.

    {"hypotheses": [{"name", "positive": [texts], "negative": [texts]}]}: 1 to MOST of them with names of their own, on
    either side 1 to PROMPTS sentences of at most LONGEST characters; no other key.

    Raises:
        Malformed: it has another form; says which.
    """
    text = answer.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON ({error})") from error
    _require(isinstance(found, dict) and set(found) == {"hypotheses"}, 'it is no object with the one key "hypotheses"')
    entries = found["hypotheses"]
    _require(isinstance(entries, list) and 0 < len(entries) <= MOST, f"it does not hold 1 to {MOST} hypotheses")
    made = [_hypothesis(entry) for entry in entries]
    names = [one.name.lower() for one in made]
    _require(len(set(names)) == len(names), "two hypotheses have one name")
    return made


def _hypothesis(entry: Any) -> Hypothesis:
    keys = {"name", "positive", "negative"}
    _require(
        isinstance(entry, dict) and set(entry) == keys, "a hypothesis has other keys than name, positive, negative"
    )
    _require(_is_text(entry["name"]), f"a name is no text of 1 to {LONGEST} characters")
    for side in ("positive", "negative"):
        texts = entry[side]
        _require(
            isinstance(texts, list) and 0 < len(texts) <= PROMPTS and all(map(_is_text, texts)),
            f"{side} of {entry['name']!r} is no list of 1 to {PROMPTS} sentences of at most {LONGEST} characters",
        )
    return Hypothesis(entry["name"].strip(), tuple(entry["positive"]), tuple(entry["negative"]))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) and len(value) <= LONGEST and value.isprintable()


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise Malformed(fault)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def _path(model: LanguageModel, prompt: str, folder: str | Path) -> Path | None:
    """Where the answer to a prompt is kept, if it is."""
    key = hashlib.sha256(json.dumps([model.name, prompt]).encode()).hexdigest()[:16]
    return Path(folder) / f"answer-{key}.json" if folder else None


def _read(path: Path | None, model: LanguageModel, prompt: str) -> str | None:
    """A kept answer that has the form; None: there is none, or it is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        parse(kept["answer"])
        return kept["answer"] if (kept["model"], kept["prompt"]) == (model.name, prompt) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def local(folder: str | Path, *, tokens: int = 1500) -> LanguageModel:
    """A causal language model of transformers in `folder`; its likeliest words, so the same answer every time.

    tokens: that an answer may have. Nothing is downloaded, and no code of the folder's own runs.

    Raises:
        UserError: no such model, or torch is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no language model: it has no config.json. Give the folder of a causal language model of "
            "transformers; nothing is downloaded."
        )
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import is_torch_available
    except ImportError as error:
        raise UserError(f"a language model needs {error.name}: {_NEEDED}") from error
    if not is_torch_available():
        raise UserError(f"a language model needs torch: {_NEEDED}, or take the lexicon, which needs none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the language model in {folder} ({type(error).__name__}). Give the whole folder of a causal "
            "language model of transformers."
        ) from error

    def answer(prompt: str) -> str:
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        length = given["input_ids"].shape[1]
        longest = getattr(model.config, "max_position_embeddings", None) or length + tokens
        if length + 1 > longest:
            raise UserError(
                f"the prompt has {length} tokens, the language model takes {longest}: show it fewer sentences."
            )
        made = model.generate(**given, do_sample=False, max_new_tokens=min(tokens, longest - length))
        return tokenizer.decode(made[0][length:], skip_special_tokens=True)

    return LanguageModel(f"{model.config.model_type} {_fingerprint(folder)}", answer, True)


def _fingerprint(folder: Path) -> str:
    """A hash of the model's files."""
    total = hashlib.sha256()
    for path in sorted(path for pattern in ("*.safetensors", "*.bin", "*.json") for path in folder.glob(pattern)):
        with open(path, "rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def http(url: str, name: str, *, key: str = "", patient_text: bool = False, seconds: float = 120.0) -> LanguageModel:
    """A model behind the chat interface of OpenAI's form, `url` ending in /chat/completions, at temperature 0.

    Args:
        name: of the model, as the service has it.
        key: name of the environment variable that holds the service's key; "": none is sent.
        patient_text: whether sentences of reports may be sent; without it only names of phrases are.

    Raises:
        UserError: `url` is not http(s), the variable is not set; and when it is asked: no answer, or none of that form.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is no address of a language model: it begins with http:// or https://.")
    if key and not os.environ.get(key):
        raise UserError(f"the environment variable {key} is not set: it should hold the key of {name}.")

    def answer(prompt: str) -> str:
        asked = {"model": name, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {os.environ[key]}"} if key else {})
        request = urllib.request.Request(url, json.dumps(asked).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                text = reply.read().decode("utf-8", "replace")
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"the language model {name} gave no answer ({error}): check the address and the key."
            ) from error
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"the service of {name} answered in another form than OpenAI's: {_cut(text)!r}.") from error
        if not isinstance(content, str):
            raise UserError(f"the service of {name} answered in another form than OpenAI's: {_cut(text)!r}.")
        return content

    return LanguageModel(name, answer, patient_text)
