"""Several evaluators over several data sets."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax import progress, provenance
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import result
from mammoclip_jax.evaluation.features import Features, TextBank, select
from mammoclip_jax.evaluation.options import check, plan
from mammoclip_jax.evaluation.result import Result


def evaluate(
    model,
    datasets: Mapping[str, Any],
    evaluators: Mapping[str, Mapping[str, Any]],
    out: Path | str | None = None,
    *,
    split: str = "test",
    cache: Path | str = "",
    allow_training_patients: bool = False,
    announce: bool = True,
) -> list[Result]:
    """Every evaluator on every data set; results are named "dataset/evaluator" and, with `out`, saved there.

    Args:
        model: an `inference.dual_encoder.DualEncoder`.
        datasets: {name: data.shards.Dataset}, prepared as the model's training data were.
        evaluators: {name: options}. An option `evaluator` says which one it is when the name is another; an option
            `folders` names the only data sets that it is for.
        cache: folder that keeps image features for later runs; "": none.
        split: for entries without a `split` of their own. A data set without images in an entry's split is passed over.
        allow_training_patients: whether patients that the model was trained on may be scored; the protocol says how many.
        announce: whether each is named when it begins. How far it is, is said anyway where it takes long.

    Raises:
        UserError: an unknown evaluator or option, a data set that was prepared differently, patients that the model was
            trained on, or nothing to evaluate at all.
    """
    check(model, evaluators, split=split)
    plans = {name: plan(model, name, options) for name, options in evaluators.items()}
    jobs, shared = [], {}
    texts = TextBank(model)
    for folder, dataset in datasets.items():
        check_preprocessing(model, folder, dataset)
        shared[folder] = Features(model, dataset, texts, cache)
        for name, wanted in plans.items():
            options = {"split": split} | wanted.options
            if wanted.folders and folder not in wanted.folders:
                continue
            if options["split"] not in ("all", *dataset.index["split"]):
                logging.info("%s has no image in split %s: no %s", folder, options["split"], name)
                continue
            said = seen_before(model, folder, dataset, options, allow_training_patients)
            jobs.append((folder, name, wanted.function, options, said))
    results = []
    for number, (folder, name, function, options, said) in enumerate(jobs, 1):
        more = {"features": shared[folder]} if "features" in function.__annotations__ else {}
        if announce:
            logging.info("evaluating %s/%s, split %s (%d of %d)", folder, name, options["split"], number, len(jobs))
        with progress.named(f"{folder}/{name}"):
            outcome = function(model, datasets[folder], **options, **more)
        results.append(outcome._replace(name=f"{folder}/{name}", protocol=f"{outcome.protocol} {said}".strip()))
    if evaluators and not results:
        splits = sorted({wanted.options.get("split", split) for wanted in plans.values()})
        raise UserError(
            f"nothing to evaluate: no data set ({', '.join(datasets)}) has images in split "
            f"{', '.join(splits)} for {', '.join(evaluators)}. Set config.evaluate.split, or --split=all."
        )
    if out:
        result.save(results, Path(out))
    return results


def seen_before(model, name: str, dataset, options: Mapping[str, Any], allowed: bool) -> str:
    """A sentence on how many of the patients that an entry scores the model was trained on.

    Raises:
        UserError: it was trained on some, and that is not `allowed`.
    """
    if model.kind == "image_encoder":
        return ""
    if model.trained_on is None:
        return "Which patients the model was trained on is not on record."
    rows = dataset.index.iloc[select(dataset.index, options["split"], options.get("patients"), options.get("seed", 0))]
    scored = np.unique(provenance.patients(dataset, rows))
    seen = int(np.isin(scored, provenance.patients_in(model.trained_on)).sum())
    known = all(parent.get("patients_known") for parent in model.provenance.get("parents", ()))
    if not seen:
        return f"The model was trained on none of the {len(scored)} patients" + (
            "." if known else "; of weights that it started from that is not on record."
        )
    where = f"{seen} of the {len(scored)} patients of data set {name!r}, split {options['split']!r},"
    if not allowed:
        raise UserError(
            f"the model was trained on {where} so that its figures would say nothing of others: choose the "
            "split that it was tested on, or other patients. With --allow_training_patients they are scored "
            "all the same, and the result says so."
        )
    logging.warning("the model was trained on %s which are scored", where)
    return (
        f"The model was trained on {seen} of the {len(scored)} patients: this does not measure what it does on others."
    )


def check_preprocessing(model, name: str, dataset) -> None:
    """Raises UserError when a data set's images were prepared otherwise than those that the model has learnt from.

    An image encoder alone has learnt from none: it takes them as they are.
    """
    if model.kind == "image_encoder":
        return
    learnt, prepared = (
        dataclasses.asdict(Preprocessing.from_dict(values))
        for values in (model.preprocessing, dataset.info["preprocessing"])
    )
    for key in learnt:
        if learnt[key] != prepared[key]:
            raise UserError(
                f"data set {name!r} was prepared with {key}={prepared[key]!r}, the model learnt from "
                f"{key}={learnt[key]!r}. Prepare the data set again with the model's value."
            )
