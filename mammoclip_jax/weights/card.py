"""The model card: what a model is, was trained on and may be used for, as README.md of a model folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from mammoclip_jax.weights import licences

# What a model of that kind does, in the hub's terms and in words.
TASKS = {
    "dual_encoder": (
        "zero-shot-image-classification",
        "A dual encoder: mammograms and texts become unit vectors in "
        "one space, so that texts can be compared with images.",
    ),
    "classifier": ("image-classification", "An image classifier for mammograms."),
    "detector": ("object-detection", "A detector of findings in mammograms."),
    "segmenter": ("image-segmentation", "A segmentation of mammograms: masks of the breast, its muscle, findings."),
    "attributes": (
        "image-classification",
        "A frozen image encoder and, of attributes of mammograms, which channels of its maps show them, and so where.",
    ),
    "image_encoder": ("image-feature-extraction", "An image encoder alone, to start a training from."),
    "text_encoder": ("feature-extraction", "A text encoder alone, to start a training from."),
}
# (field of the preprocessing, its value) -> words, in the order in which it is done.
_STEPS = {
    ("intensity", "voi"): "Stored values are shown as the file's VOI LUT or window says.",
    ("intensity", "raw_minmax"): "Stored values are stretched from their smallest to their largest.",
    ("intensity", "published"): "Stored values become 8 bits as in Mammo-CLIP's preparation.",
    ("crop", "robust"): "The breast is found and cropped.",
    ("crop", "published"): "The breast is cropped as in Mammo-CLIP's preparation.",
    ("outside", "masked"): "What lies outside the breast becomes background.",
    ("geometry", "fit"): "The crop is resized with its aspect kept.",
    ("geometry", "stretch"): "The crop is stretched to the canvas; its aspect is not kept.",
    ("chest_wall", "left"): "The chest wall is brought to the left.",
    ("chest_wall", "centre"): "The image stands in the middle of the canvas.",
    ("upright", True): "MLO views are turned until the edge of the pectoral muscle is vertical.",
    ("scale", "breast"): "The CC and MLO views of a breast have one scale.",
}
_INTENSITIES = {"minmax": "stretched to [0, 1] one by one", "range": "divided by the largest value of their type"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def render(meta: Mapping[str, Any], *, parameters: Mapping[str, int], results: Mapping[str, Any] | None = None) -> str:
    """The model card, Markdown with the hub's YAML in front.

    Args:
        meta: kind, step, config, preprocessing, tokenizer and provenance, as in `folder.write`; what is missing in the
            sections of an imported model is left out.
        parameters: {top module: number of parameters}.
        results: what `evaluation.result.to_json` returns, {"metrics": {name: {value, low, high, n}}, "protocol":
            {result: sentence}}; None where nothing was measured.
    """
    config, provenance = meta["config"], meta["provenance"]
    terms = [entry | {"found": licences.find(entry["licence"])} for entry in licences.terms(provenance)]
    weights = [entry for entry in terms if not entry.get("data")]
    data = provenance.get("data") or {}
    task, summary = TASKS[meta["kind"]]
    return (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            kind=meta["kind"],
            name=config.get("name") or meta["kind"].replace("_", " "),
            task=task,
            summary=summary,
            step=meta["step"],
            hub=_hub(weights),
            base_models=[entry["weights"] for entry in weights if _HUB_NAME.fullmatch(entry["weights"])],
            towers={
                tower: _options(config["model"][tower]) for tower in ("image", "text") if config["model"].get(tower)
            },
            labels=config["model"].get("labels", ()),
            parameters=parameters,
            preprocessing=meta["preprocessing"],
            steps=[words for (field, value), words in _STEPS.items() if meta["preprocessing"].get(field) == value],
            image=config.get("image") or {},
            intensity=_INTENSITIES.get((config.get("image") or {}).get("intensity"), ""),
            text_length=config.get("data", {}).get("text_length", 0),
            has_tokenizer=bool(meta["tokenizer"]),
            data=data,
            inherited=[entry for entry in terms if entry.get("data") and entry["data"] not in data],
            reality=_reality(terms),
            weights=weights,
            parents=provenance.get("parents") or (),
            non_commercial=[entry["weights"] for entry in terms if entry["found"].non_commercial],
            share_alike=[entry["weights"] for entry in terms if entry["found"].share_alike],
            overrides=provenance.get("overrides") or (),
            notes=provenance.get("notes") or (),
            versions=provenance.get("versions") or {},
            metrics=(results or {}).get("metrics") or {},
            protocol=(results or {}).get("protocol") or {},
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "yaml": lambda value: json.dumps(str(value)), "decimal": _decimal}
    return environment


def _text(value: Any) -> str:
    """Words from elsewhere on one line of Markdown or in one cell of a table; tags do not come into effect."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _options(options: Mapping[str, Any]) -> str:
    shown = [f"{key} {value}" for key, value in options.items() if key != "name" and value not in (None, "", [], {})]
    return f"{options.get('name', '')}" + (f" ({', '.join(shown)})" if shown else "")


def _hub(weights: list[dict]) -> str:
    """The hub's identifier of the model's licence: that of its only terms, or none that the hub knows."""
    identifiers = {entry["found"].hub for entry in weights}
    return identifiers.pop() if len(identifiers) == 1 else "other" if identifiers else "unknown"


def _reality(terms: list[dict]) -> str:
    """One of "phantom" where all data is generated, "mixed" where some is, "real" where none is, "unknown" without data."""
    kinds = {entry["real"] for entry in terms if entry.get("data") and entry["real"] is not None}
    return {frozenset(): "unknown", frozenset({True}): "real", frozenset({False}): "phantom"}.get(
        frozenset(kinds), "mixed"
    )
