"""ladder_planted.npz: a planted bias, found, tested and mended; figures of a prototype, which chance moves a little."""

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation.slices import repair
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.evaluation.slices.mend import CLASSIFIER, DFR, REPAIRED, mend, true_name
from mammoclip_jax.evaluation.slices.run import Options, Part, find

TOLERANCES = [("expected", 0.02, 0.02)]
PLANTED, PLACE = "calcification", 0  # of the attributes
OPTIONS = Options(known=PLANTED, threshold=0.5, resamples=100, cs=(0.01, 0.1), draws=3)


def values(fixture, mesh) -> dict:
    if mesh.size > 1:
        return {}
    findings, repaired = run(fixture)
    shown = repaired.figures.set_index(["model", "attribute", "figure"])["value"]
    figures = [shown[model, true_name(PLANTED), "worst group"] for model in (CLASSIFIER, REPAIRED, DFR)]
    accuracies = [shown[model, "", "accuracy"] for model in (CLASSIFIER, REPAIRED, DFR)]
    first = findings.tests.groupby("class").first()
    found = (first["hypothesis"] == PLANTED).all() and (first["q"] < 0.01).all()
    both = [x for pair in zip(figures, accuracies, strict=True) for x in pair]
    return {"expected": [findings.projector.r2 if found else np.nan, *both]}


def run(fixture):
    """(findings, repaired) of the file, with its own prompts."""
    names = [str(name) for name in fixture.exact("attribute_names")]
    sides = {"+": fixture["prompts_positive"], "-": fixture["prompts_negative"]}
    vectors = {
        f"{name}{side}{k}": prompts[place, k]
        for side, prompts in sides.items()
        for place, name in enumerate(names)
        for k in range(prompts.shape[1])
    }
    given = [
        Hypothesis(name, *(tuple(key for key in vectors if key.startswith(name + side)) for side in "+-"))
        for name in names
    ]
    head = repair.fit_head(fixture["train_features"], fixture.exact("train_truth"), 1e6)
    train, validation, test = (_part(fixture, name, head) for name in ("train", "valid", "test"))
    embed = lambda texts: np.stack([vectors[text] for text in texts])
    findings = find(train, validation, embed=embed, given=given, options=OPTIONS)
    return findings, mend(train, validation, test, findings, OPTIONS)


def _part(fixture, name: str, head: repair.Head) -> Part:
    features, truth = fixture[f"{name}_features"], fixture.exact(f"{name}_truth").astype(int)
    columns = pd.DataFrame({PLANTED: fixture.exact(f"{name}_attributes")[:, PLACE]})
    patients = np.arange(len(truth)).astype(str)
    return Part(features, truth, head.probabilities(features), patients, fixture[f"{name}_vlm"], columns)
