"""Tables of predictions of made-up models, and the index of their data set."""

import json

import numpy as np
import pandas as pd


def index(patients=40, seed=0):
    """An index of exams of four images; density, age and vendor by patient, no site."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(patients):
        labels = {"density": "ABCD"[p % 4], "age": int(rng.integers(30, 80)), "mass": 0}
        for side in "LR":
            mass = int(rng.random() < 0.4)
            rows += [
                {
                    "dataset": "made",
                    "patient": f"p{p:03d}",
                    "study": f"s{p}",
                    "image": f"{p}{side}{view}",
                    "laterality": side,
                    "view": view,
                    "vendor": ("A Inc", "B_Ltd")[p % 2],
                    "labels": json.dumps(labels | {"mass": mass}),
                }
                for view in ("CC", "MLO")
            ]
    return pd.DataFrame(rows)


def yes_no(table, noise, label="mass", seed=0):
    """Predictions of mass; the more noise, the worse."""
    truth = np.array([json.loads(labels)["mass"] for labels in table["labels"]], dtype=float)
    score = 1 / (1 + np.exp(-(2 * truth - 1 + noise * np.random.default_rng(seed).normal(size=len(truth)))))
    return _identity(table).assign(label=label, truth=truth, score=score)


def density(table, noise, seed=0):
    """Predictions of the density's class."""
    truth = np.array([json.loads(labels)["density"] for labels in table["labels"]])
    rng = np.random.default_rng(seed)
    chances = np.exp((truth[:, None] == np.array([*"ABCD"])) * 2 + noise * rng.normal(size=(len(truth), 4)))
    chances /= chances.sum(1, keepdims=True)
    return _identity(table).assign(label="density", truth=truth, **{f"p_{c}": p for c, p in zip("ABCD", chances.T)})


def _identity(table):
    return table[["dataset", "patient", "study", "image", "laterality", "view"]].reset_index(drop=True)
