"""Precision@k as MedCLIP has it: of the texts nearest to an image, how many are of its class?

Wang et al. 2022 (arXiv:2210.10163), section 4: 1,000 images and 1,000 sentences of five classes, 200 each; the sentences are
of another data set (MIMIC-CXR) than the images (CheXpert-5x200), which has no reports. P@k is the share of the k retrieved
sentences whose class is the image's, for k of 1, 2, 5 and 10.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text import findings, reports
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import Features, label_texts, select
from mammoclip_jax.evaluation.metrics import ranking
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference import prompt_files
from mammoclip_jax.inference.prompts import unit


class Gallery(NamedTuple):
    """Texts, the class of each, and where they come from, in words."""

    texts: list[str]
    classes: list[str]
    source: str


def class_retrieval(
    model,
    dataset,
    *,
    label: str,
    texts: str,
    split: str = "test",
    texts_split: str = "test",
    per_class: int = 200,
    ks: tuple[int, ...] = (1, 2, 5, 10),
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Precision@k of single images in the texts of a gallery with as many of each class, where there are as many.

    Args:
        label: of the images, whose values are the classes, such as "five_x".
        texts: a data set folder, whose sentences in `texts_split` are the gallery (`sentences_of`), or a prompt file, whose
            texts under `label` are.
        per_class: texts of each class, at most; of the classes that images have.

    Metrics: "LABEL/precision@1", ..., beside "LABEL/precision_chance", the share of the class in the gallery. Tables: classes,
    the same by class with the number of images and texts; texts, all of the gallery.

    Raises:
        UserError: there is no such gallery, it has no text of a class, or a k is below 1.
    """
    if min(ks) < 1:
        raise UserError(f"class_retrieval takes ks from 1 on, not ks={tuple(ks)}.")
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    names = label_texts(rows, label)
    known = names != ""
    if not known.any():
        nothing = statistics.entry(None, n=0, reason="no image has this label")
        said = f"Split {split}: no image has the label {label}."
        return Result("class_retrieval", said, {f"{label}/precision@{k}": nothing for k in ks})
    positions, rows, names = positions[known], rows[known].reset_index(drop=True), names[known]
    classes = sorted(set(names))
    gallery = drawn(gallery_of(texts, texts_split, label, classes), classes, per_class)
    features = features or Features(model, dataset)
    images, embedded = unit(features.images(positions)), unit(features.texts.embed_text(gallery.texts))
    number = {name: place for place, name in enumerate(classes)}
    mine, theirs = (np.array([number[name] for name in group]) for group in (names, gallery.classes))
    # The texts are nobody's among the images: all are candidates.
    precision, chance = ranking.agreement(
        images, embedded, mine, theirs, np.zeros(len(mine), int), np.ones(len(theirs), int), tuple(ks)
    )
    owners = (rows["dataset"].astype(str) + "/" + rows["patient"].astype(str)).to_numpy()
    options = {"resamples": resamples, "seed": seed}
    metrics = {f"{label}/precision@{k}": statistics.mean(precision[:, i], owners, **options) for i, k in enumerate(ks)}
    metrics[f"{label}/precision_chance"] = statistics.entry(chance.mean(), n=len(chance))
    by_class = [
        {"class": name, "images": int((mine == c).sum()), "texts": int((theirs == c).sum())}
        | {f"precision@{k}": precision[mine == c, i].mean() for i, k in enumerate(ks)}
        for c, name in enumerate(classes)
    ]
    tables = {
        "classes": pd.DataFrame(by_class),
        "texts": pd.DataFrame({"class": gallery.classes, "text": gallery.texts}),
    }
    return Result("class_retrieval", _protocol(split, label, gallery, per_class), metrics, tables)


def gallery_of(texts: str, split: str, label: str, classes: list[str]) -> Gallery:
    """All texts of the classes that a data set folder or a prompt file has.

    Raises:
        UserError: there is neither, or the prompts have no such label with classes.
    """
    if Path(texts).is_dir():
        return sentences_of(Dataset.open(texts), split, classes)
    prompts = prompt_files.load(texts)
    if label not in prompts.classes:
        raise UserError(f"{prompts.source} has no classes under {label!r}, and there is no data set folder {texts!r}.")
    pairs = [(text, name) for name in classes for text in prompts.classes[label].get(name, ())]
    return Gallery([text for text, _ in pairs], [name for _, name in pairs], prompt_files.prompts_name(texts))


def sentences_of(dataset: Dataset, split: str, classes: list[str]) -> Gallery:
    """The different sentences of a split's reports that affirm one of the classes and no other (`findings.said`)."""
    found: dict[str, str] = {}
    for texts in dataset.index["texts"].iloc[select(dataset.index, split)]:
        for sentence in (sentence for text in texts for sentence in reports.sentences(text)):
            if sentence not in found:
                there = [name for name in classes if findings.said([sentence], name) == 1]
                found[sentence] = there[0] if len(there) == 1 else ""
    kept = {sentence: name for sentence, name in found.items() if name}
    source = f"the sentences of {Path(dataset.path).name}, split {split}, that affirm one of the classes alone"
    return Gallery(list(kept), list(kept.values()), source)


def drawn(gallery: Gallery, classes: list[str], per_class: int) -> Gallery:
    """At most `per_class` of each class, in the order of a hash of the text.

    Raises:
        UserError: there is no text of a class.
    """
    pairs = []
    for name in classes:
        own = [text for text, other in zip(gallery.texts, gallery.classes, strict=True) if other == name]
        if not own:
            raise UserError(f"class_retrieval: {gallery.source} have no text of the class {name!r}: give others.")
        order = sorted(own, key=lambda text: hashlib.sha256(text.encode()).digest())
        pairs += [(text, name) for text in order[:per_class]]
    return gallery._replace(texts=[text for text, _ in pairs], classes=[name for _, name in pairs])


def _protocol(split: str, label: str, gallery: Gallery, per_class: int) -> str:
    return (
        f"Split {split}: single images whose {label} is known. Gallery: {gallery.source}, at most {per_class} a class by a hash "
        f"of the text, {len(gallery.texts)} in all. precision@k: share of the k nearest texts that are of the image's class "
        "(MedCLIP's P@k), ties in random order, in expectation; precision_chance: share of the class in the gallery. "
        f"Intervals: {statistics.INTERVAL} of the images, with the gallery as it is."
    )
