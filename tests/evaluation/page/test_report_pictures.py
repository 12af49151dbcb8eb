"""What the page draws of predictions and detections: curves, reliability, confusion, subgroups, FROC, pictures."""

import json

import numpy as np
import pandas as pd
import pytest
from fakes import FakeDataset, FakeModel
from test_report import Page

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics.classification import binary, multiclass
from mammoclip_jax.evaluation.page import illustrations, report
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference.overlay import png

CLASSES = ("A", "B", "C")
QUICK = {"resamples": 30}


class Film(FakeDataset):
    """With a density and a vendor for each patient, for subgroups."""

    def __init__(self, patients=16):
        super().__init__(patients)
        number = self.index["patient"].str[1:].astype(int)
        labels = [json.loads(text) | {"density": CLASSES[n % 3]} for text, n in zip(self.index["labels"], number)]
        self.index = self.index.assign(
            labels=[json.dumps(found) for found in labels], vendor=np.where(number % 2, "Hologic", "Siemens")
        )


def classified(dataset):
    rng, rows = np.random.default_rng(0), dataset.index
    mass = np.array([json.loads(text)["mass"] for text in rows["labels"]], float)
    score = np.clip(0.3 + 0.4 * mass + rng.normal(0, 0.25, len(mass)), 0, 1)
    density = np.array([json.loads(text)["density"] for text in rows["labels"]])
    p = rng.dirichlet(np.ones(3), len(rows)) + (density[:, None] == np.array(CLASSES))
    p /= p.sum(1, keepdims=True)
    tables = {
        "predictions": rows[list(IDENTITY)].assign(label="mass", truth=mass, score=score),
        "predictions_density": rows[list(IDENTITY)]
        .assign(label="density", truth=density)
        .assign(**{f"p_{name}": p[:, k] for k, name in enumerate(CLASSES)}),
    }
    metrics = {f"mass/{name}": entry for name, entry in binary(rows, mass, score, **QUICK).items()}
    metrics |= {f"density/{name}": entry for name, entry in multiclass(rows, density, p, CLASSES, **QUICK).items()}
    return Result("phantom/classification", "Split test.", metrics, tables)


def detected(dataset):
    picture = png(np.full((64, 48), 90, np.uint8))
    shown = [
        dict(
            figure=f"mass_{i:03d}",
            label="mass",
            image=f"i{i}",
            patient="p",
            laterality="L",
            view="CC",
            real=False,
            boxes=i % 2,
            found=2,
        )
        for i in range(6)
    ]
    metrics = {
        "mass/ap@0.5": statistics.entry(0.4, 0.3, 0.5, n=30),
        "mass@0.5/lesion/mean_sensitivity": statistics.entry(0.6, 0.5, 0.7, n=30),
    }
    return Result(
        "phantom/detection",
        "Split test.",
        metrics,
        {"pictures": pd.DataFrame(shown)},
        {f"mass_{i:03d}": picture for i in range(6)} | {"froc_mass": picture},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    dataset = Film()
    out = tmp_path_factory.mktemp("pictures")
    return report.write(
        out, [classified(dataset), detected(dataset)], model=FakeModel(), datasets={"phantom": dataset}, resamples=30
    )


def test_predictions_and_detections_are_drawn(written):
    page = Page(written.read_text())
    for words in (
        "Plots: mass",
        "ROC",
        "Precision and recall",
        "Reliability",
        "Confusion at 0.5",
        "Subgroups",
        "Plots: density",
        "FROC mass",
        "1 true box, 2 found",
        "0 true boxes, 2 found",
        "2 more",
    ):
        assert words in page.text, words
    assert all(source.startswith("data:image/") for source in page.sources)
    assert len(page.sources) == 2 * (5 + 5) + 1 + 6


def test_headings_say_what_was_learnt(written):
    text = Page(written.read_text()).text
    assert "AUROC, mass" in text and "Zero-shot AUROC" not in text and "Boxes of mass: AP at IoU 0.5" in text
    assert "Accuracy, density" in text and "Images, exams, maximum over views" in text


def test_tables_that_are_linked_are_there(written):
    page = Page(written.read_text())
    files = [link for link in page.links if not link.startswith("#")]
    assert all((written.parent / link).is_file() for link in files)
    table = pd.read_csv(written.parent / "results" / "phantom" / "classification" / "subgroups.csv")
    assert set(table["by"]) >= {"all", "density", "vendor", "view"} and set(table["label"]) == {"mass", "density"}
    tex = (written.parent / "results" / "metrics.tex").read_text()
    assert r"\toprule" in tex and r"mass/auroc\_image" in tex and "nan" not in tex.lower()


def test_margins_of_zero_shot_are_no_probabilities():
    found = classified(Film(8))
    (mass, density) = illustrations.predicted(found)
    assert illustrations.has_probabilities(found, mass)
    margins = found._replace(tables=found.tables | {"prompts": pd.DataFrame({"label": ["mass"]})})
    assert not illustrations.has_probabilities(margins, mass)
    titles = [plot.title for plot in illustrations.of_label(mass, False, 5)]
    assert titles == ["ROC", "Precision and recall"]
    assert [plot.title for plot in illustrations.of_label(density, False, 5)][-1] == "Confusion"


def test_one_class_alone_draws_nothing():
    found = classified(Film(8))
    tables = {"predictions": found.tables["predictions"].assign(truth=1.0)}
    (mass,) = illustrations.predicted(found._replace(tables=tables))
    assert list(illustrations.of_label(mass, True, 5)) == []
    assert len(illustrations.by_subgroup(found._replace(tables=tables), Film(8).index, 5)) == 0
