"""All of it, from arrays to what a page shows: slices, what they cost, how far they can be mended, and fairness."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics.calibration import platt
from mammoclip_jax.evaluation.slices import fairness, figures, run
from mammoclip_jax.evaluation.slices.confirmation import ABSENT, SLICE
from mammoclip_jax.evaluation.slices.hypotheses import Embed, Hypothesis
from mammoclip_jax.evaluation.slices.language_model import LanguageModel
from mammoclip_jax.evaluation.slices.mend import CLASSIFIER, REPAIRED, Repaired, known, mend, true_name
from mammoclip_jax.evaluation.slices.run import Bank, Findings, Options, Part, examples, find, members


class Analysis(NamedTuple):
    """What a page of error slices shows; every table is of the test part unless it says otherwise.

    Attributes:
        findings: see `run.Findings`; its table `tests` is of the confirming patients.
        repaired: see `mend.Repaired`; None where no slice was found, or nothing could be mended.
        rates: slice, figure, value, low, high, n, reason, worst, model: sensitivity and specificity of each slice at the
            models' one threshold, of the classifier and of its repair.
        examples: hypothesis, class, right, rank, place (a row of the test part).
        fairness: see `fairness.fairness`, with the column `model`.
        metrics: {name: entry}, as of an evaluator's `Result`.
        notes: what could not be done, and why.
        protocol: how it came about, in sentences.
    """

    findings: Findings
    repaired: Repaired | None
    rates: pd.DataFrame
    examples: pd.DataFrame
    fairness: pd.DataFrame
    metrics: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    protocol: str


def analyse(
    train: Part | None,
    validation: Part,
    test: Part,
    bank: Bank | None = None,
    embed: Embed | None = None,
    *,
    given: Sequence[Hypothesis] = (),
    model: LanguageModel | None = None,
    answers: str = "",
    options: Options = Options(),
) -> Analysis:
    """Finds slices on `validation`, mends the classifier there, and measures both on `test`. Arguments as of `run.find`.

    Raises:
        UserError: as `run.find`.
    """
    findings = find(train, validation, bank, embed, given=given, model=model, answers=answers, options=options)
    repaired, notes = None, []
    if findings.slices:
        try:
            repaired = mend(train, validation, test, findings, options)
            notes += repaired.notes
        except UserError as error:  # what was found is worth showing all the same
            notes.append(f"nothing is mended: {error}")
    else:
        notes.append("no slice was confirmed: nothing is mended")
    scores = {CLASSIFIER: test.score} | ({REPAIRED: repaired.scores[REPAIRED]} if repaired else {})
    cuts = {CLASSIFIER: findings.threshold} | ({REPAIRED: repaired.thresholds[REPAIRED]} if repaired else {})
    chosen_on = {CLASSIFIER: validation.score} | ({REPAIRED: repaired.validation[REPAIRED]} if repaired else {})
    draws = {"resamples": options.resamples, "seed": options.seed}
    inside, rates, fair = members(findings, test), [], []
    for name, score in scores.items():
        decision = (score >= cuts[name]).astype(int)
        table = figures.slice_rates(test.truth, decision, inside, test.patients, least=options.least, **draws)
        rates.append(table.assign(model=name))
        if test.columns is not None:
            probability = platt(validation.truth, chosen_on[name])(score)
            table = fairness.fairness(
                test.truth, decision, probability, test.columns, test.patients, least=options.least, **draws
            )
            fair.append(table.assign(model=name))
    metrics = _metrics(findings, repaired, test, options)
    return Analysis(
        findings,
        repaired,
        pd.concat(rates, ignore_index=True),
        examples(findings, test),
        pd.concat(fair, ignore_index=True) if fair else pd.DataFrame(),
        metrics,
        tuple(notes),
        protocol(findings, options),
    )


def _metrics(findings: Findings, repaired: Repaired | None, test: Part, options: Options) -> dict[str, dict[str, Any]]:
    n = int((~findings.discover).sum())
    entries = {"slices": statistics.entry(len(findings.slices), n=n)}
    if findings.projector is not None:
        entries["projection_r2"] = statistics.entry(findings.projector.r2, n=int(findings.discover.sum()))
    for row in findings.tests[findings.tests["verdict"] == SLICE].to_dict("records"):
        name = f"{row['hypothesis']} {row['worse']}, class {row['class']}/gap"
        entries[name] = statistics.entry(row["gap"], row["low"], row["high"], n=row["n_slice"])
    for row in repaired.figures.to_dict("records") if repaired else ():
        name = "/".join(filter(None, (row["model"], row["attribute"], row["figure"])))
        entries[name] = statistics.entry(
            row["value"], row["low"], row["high"], n=row["n"], reason=row["reason"] or None
        )
        if row["model"] != CLASSIFIER:
            entries[f"{name}_gain"] = statistics.entry(row["gain"], row["gain_low"], row["gain_high"], n=row["n"])
    if options.known:
        entries |= _against_known(findings, repaired, test, options)
    return entries


def _against_known(findings, repaired, test: Part, options: Options) -> dict[str, dict[str, Any]]:
    """The classifier's worst group of a known attribute, and how well the found slices hit the known ones.

    A known slice is a class with or without the attribute; of the found ones the score is of their worse side, within
    their class.
    """
    attribute = known(test, options.known)
    entries = {}
    if repaired is None:
        decision = (test.score >= findings.threshold).astype(int)
        entries[f"{CLASSIFIER}/{true_name(options.known)}/worst group"] = figures.worst_group(
            test.truth,
            decision,
            attribute,
            test.patients,
            least=options.least,
            resamples=options.resamples,
            seed=options.seed,
        )
    found = findings.tests[findings.tests["verdict"] == SLICE].to_dict("records")
    right = (test.score >= findings.threshold) == (test.truth == 1)
    columns, named = [], []
    for row in found:
        score = findings.scores(test, [row["hypothesis"]])[:, 0] * (-1 if row["worse"] == ABSENT else 1)
        columns.append(np.where(test.truth == row["class"], score, -np.inf))
    for label in (0, 1):
        sides = [(test.truth == label) & (attribute == side) for side in (0, 1)]
        if min(side.sum() for side in sides) >= options.least:
            named.append(min(sides, key=lambda side: right[side].mean()))
    if columns and named:
        value = figures.precision_at_k(np.stack(columns, axis=1), np.stack(named, axis=1))["value"]
        entries[f"precision_at_{figures.K}"] = statistics.entry(value, n=len(named))
    return entries


_WHERE = {run.IMAGES: "the dual encoder's vector of it", run.PROJECTION: "the classifier's mapped features of it"}


def protocol(findings: Findings, options: Options) -> str:
    """How slices were looked for and tested, in sentences."""
    cut = "chosen on validation (Youden)" if options.threshold is None else "as given"
    said = ""
    if findings.projector is not None:
        said = (
            f"Features are mapped to the dual encoder's space by ridge regression, R² {findings.projector.r2:.3f} on "
            "the discovering patients, about the mean vector. How much of a phrase an image has is read off "
            f"{_WHERE[findings.scored_by]}. "
        )
    return (
        f"Decisions at the score {findings.threshold:.4g}, {cut}. {said}Hypotheses, their thresholds and their worse side "
        f"are of {int(findings.discover.sum())} validation images; they are tested on the {int((~findings.discover).sum())} "
        f"of the other patients: {len(findings.tests)} tests, Fisher's, one-sided, counts divided by the design effect where "
        f"patients have several images, then Benjamini and Hochberg at {options.level:g}; {options.least} images are needed on "
        f"either side. A slice is what also has an interval of the gap below 0; intervals: {statistics.INTERVAL}. "
        "Figures of the classifier and of its repair are of the test part, which chose nothing. `erm on validation` learns "
        "from the same images as the repair without its groups: beyond it lies what the slices are worth."
    )
