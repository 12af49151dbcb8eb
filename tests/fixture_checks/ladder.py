"""ladder.npz: projector, retrieval, hypotheses, tests, last layers, worst group; batmanlab's Ladder and closed forms."""

import numpy as np

from mammoclip_jax.evaluation.slices import (
    confirmation,
    figures,
    fisher,
    hypotheses,
    phrases,
    projection,
    repair,
    retrieval,
)
from mammoclip_jax.evaluation.statistics.paired import benjamini_hochberg

TOLERANCES = [
    (r"ret_top6|hyp_present|hyp_counts|bh_rejected_q05|mit_right_rows|ll_group_sizes|wga_value", 0.0, 0.0),
    (r"ll_erm_weights", 1e-3, 1e-3),
    (r"ll_balanced_weights", 1e-4, 1e-4),
    (r"ll_(erm|balanced)_(mean_wga|groups)", 2e-3, 2e-3),
    (r"ret_null_z|ngram_z", 1e-8, 1e-3),
    (r"bh_adjusted|hyp_accuracy", 1e-12, 1e-6),
    (r"\w+", 1e-8, 1e-4),
]
DRAWN = 8  # images of each end of a class, `mit_*`


def values(fixture, mesh) -> dict:
    if mesh.size > 1:
        return {}
    return {
        **_projector(fixture),
        **_retrieval(fixture),
        **_hypotheses(fixture),
        **_last_layers(fixture),
        "bh_adjusted": benjamini_hochberg(fixture["bh_p"]),
        "bh_rejected_q05": benjamini_hochberg(fixture["bh_p"]) < confirmation.LEVEL,
        "ngram_z": phrases.log_odds(fixture["ngram_top"], fixture["ngram_rest"], fixture["ngram_prior"]),
    }


def _projector(fixture) -> dict:
    maps = projection.ridge(fixture["proj_X_train"], fixture["proj_Y_train"], fixture["proj_lambdas"])
    validation = fixture["proj_X_valid"], fixture["proj_Y_valid"]
    return {
        "proj_W": [one.weights for one in maps],
        "proj_b": [one.bias for one in maps],
        "proj_r2_valid": [projection.r_squared(one, *validation) for one in maps],
        "proj_rescale_right_b": maps[0].bias,
        "proj_rescale_released_b": maps[0].bias,
    }


def _retrieval(fixture) -> dict:
    positive = fixture["ret_truth"] == 1
    right = (fixture["ret_probability"] >= 0.5) == positive
    projector = projection.Projector(fixture["ret_W"], fixture["ret_b"])
    found = retrieval.contrast(projector, fixture["ret_features"][positive], right[positive])
    scores, z = retrieval.score(fixture["ret_sentences"], found)
    return {"ret_delta": found.delta, "ret_scores": scores, "ret_null_z": z, "ret_top6": retrieval.top(scores, 6)}


def _hypotheses(fixture) -> dict:
    truth = fixture["ret_truth"]
    right = (fixture["ret_probability"] >= 0.5) == (truth == 1)
    vectors = hypotheses.mean_direction(fixture["hyp_prompts"])
    projector = projection.Projector(fixture["ret_W"], fixture["ret_b"])
    scores = projector.along(fixture["ret_features"], vectors)
    cuts = np.quantile(scores, 0.4, axis=0)
    present = confirmation.attribute(scores, cuts)
    cells = confirmation.counts(present[truth == 1], right[truth == 1])
    absent, there = cells[:, :2].sum(axis=1), cells[:, 2:].sum(axis=1)
    p = fisher.worse(cells[:, 0], absent, cells[:, 2], there)
    rows = repair.extreme_rows(scores[:, 0], truth, DRAWN)
    rows = np.concatenate([rows[2 * DRAWN :], rows[: 2 * DRAWN]])  # the file has the positives first
    return {
        "hyp_vectors": vectors,
        "hyp_scores": scores,
        "hyp_threshold_q40": cuts,
        "hyp_present": present,
        "hyp_counts": cells,
        "hyp_accuracy": np.stack([cells[:, 0] / absent, cells[:, 2] / there], axis=1),
        "hyp_fisher": p,
        "hyp_permutation_exact": p,
        "mit_right_rows": rows,
        "mit_released_rows": rows,
        "mit_released_truth": truth[rows],
    }


def _last_layers(fixture) -> dict:
    x, truth, attribute = (fixture[f"ll_{name}_test"] for name in "Xya")
    rows = fixture["ll_balanced_rows"]
    heads = {
        "erm": repair.fit_head(fixture["ll_X_train"], fixture["ll_y_train"], 1e6),
        "balanced": repair.fit_head(fixture["ll_X_valid"][rows], fixture["ll_y_valid"][rows], 1.0),
    }
    found = {
        "ll_group_sizes": np.bincount(repair.groups(fixture["ll_y_valid"], fixture["ll_a_valid"])),
        "wga_value": _worst(fixture["wga_truth"], fixture["wga_pred"], fixture["wga_attribute"]),
    }
    for name, head in heads.items():
        decision = (head.logits(x) >= 0).astype(int)
        group = repair.groups(truth, attribute)
        found |= {
            f"ll_{name}_weights": np.r_[head.weights, head.bias],
            f"ll_{name}_mean_wga": [(decision == truth).mean(), _worst(truth, decision, attribute)],
            f"ll_{name}_groups": [(decision == truth)[group == k].mean() for k in range(4)],
        }
    return found


def _worst(truth, decision, attribute) -> float:
    patients = np.arange(len(truth))
    return figures.worst_group(truth, decision, attribute, patients, least=1, resamples=0)["value"]
