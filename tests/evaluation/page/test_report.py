"""The page: every section, nothing from outside, well-formed, and honest about what is missing."""

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from fakes import FakeDataset, FakeModel

from mammoclip_jax.evaluation import result, statistics
from mammoclip_jax.evaluation.page import display, plots, report
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.suite import evaluate

HISTORY = [
    {"step": s, "loss": 3.0 / s, "images_per_second": 30.0, "eval/phantom/zero_shot/mass/auroc": 0.5 + s / 100}
    for s in range(1, 20)
]
EVALUATORS = {
    "zero_shot": {"resamples": 50},
    "retrieval": {"resamples": 50, "folders": ["phantom"]},
    "saliency": {"resamples": 50, "gallery": 2},
}
VOID = {"meta", "img", "br", "source", "link", "input", "hr"}


class Page(HTMLParser):
    """Fails on tags that are not closed in order, keeps ids, links, sources and the visible text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.sources, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"twice the same attribute in <{tag}>"
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values[name] for name in ("src", "srcset", "data", "action") if name in values]
        if tag == "img":
            assert values.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    datasets = {"phantom": FakeDataset(12), "films": FakeDataset(2, real=True, boxes=False, name="films", seed=5)}
    results = evaluate(FakeModel(), datasets, EVALUATORS)
    overlays = out / "exam"
    overlays.mkdir()
    (overlays / "a.png").write_bytes(cv2.imencode(".png", np.zeros((2000, 1500), np.uint8))[1].tobytes())
    view = {
        "laterality": "L",
        "view": "CC",
        "file": "a.dcm",
        "notes": ["view unknown"],
        "scores": {"mass": 0.25},
        "overlays": {"mass": "a.png"},
    }
    scores = {"mass": {"mean": 0.25, "max": 0.25}}
    found = {
        "prompts": {"mass": {}},
        "aggregation": {"view": "a cosine"},
        "exams": [
            {
                "exam": "exam <7>",
                "views": [view],
                "scores": scores,
                "breasts": [{"laterality": "L", "views": ["CC"], "scores": scores}],
                "missing": ["R CC", "R MLO"],
                "left_out": [{"file": "b.dcm", "reason": "for_processing"}],
            }
        ],
    }
    path = report.write(
        out,
        results,
        model=FakeModel(),
        datasets=datasets,
        history=HISTORY,
        title="A <run> & more",
        command="python -m mammoclip_jax.evaluate --workdir='runs/x y'",
        predictions=[(found, overlays)],
    )
    return path, results


def test_every_section_is_there_and_reachable(written):
    page = Page(written[0].read_text())
    wanted = ["data", "headline", "curves", "results", "saliency", "films", "exams", "provenance", "reproduce"]
    assert page.ids == wanted
    assert [link for link in page.links if link.startswith("#")] == [f"#{name}" for name in wanted]
    files = [link for link in page.links if not link.startswith("#")]
    assert {"results/metrics.csv", "results/metrics.tex", "results/phantom/zero_shot/predictions.csv"} <= set(files)
    assert all((written[0].parent / file).is_file() for file in files)
    for words in (
        "A <run> & more",
        "Without R CC, R MLO.",
        "Left out: for_processing.",
        "phantom : computer phantoms",
        "films : real mammograms",
        "Zero-shot AUROC, mass",
        "Training loss",
        "Pointing game hits",
        "exam <7>",
        "numpy",
        "step 7",
        "python -m mammoclip_jax.evaluate --workdir='runs/x y'",
        "Not a medical device",
    ):
        assert words in page.text, words


def test_the_page_needs_nothing_from_outside(written):
    text = written[0].read_text()
    page = Page(text)
    assert len(page.sources) >= 2 * 3 + 4 + 1
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|<script|url\(", text)
    for source in page.sources:
        kind, encoded = source.split(";base64,")
        content = base64.b64decode(encoded)
        assert content.startswith(b"\xff\xd8" if kind.endswith("jpeg") else b"<?xml")


def test_tables_and_pictures_lie_beside_the_page(written):
    path, results = written
    table = pd.read_csv(path.parent / "results" / "metrics.csv")
    assert len(table) == sum(len(r.metrics) for r in results)
    metrics = json.loads((path.parent / "results" / "metrics.json").read_text())["metrics"]
    assert metrics["phantom/zero_shot/mass/auroc"]["n"] == 24
    assert len(pd.read_csv(path.parent / "results" / "phantom" / "zero_shot" / "scores.csv")) == 48
    assert len(list((path.parent / "results" / "phantom" / "saliency").glob("*.png"))) == 2


def test_what_could_not_be_measured_is_said(written):
    assert "not measured: no image has boxes of this label" in Page(written[0].read_text()).text


def test_large_pictures_are_shrunk_for_the_page():
    uri = report.inline(cv2.imencode(".png", np.zeros((4000, 1000), np.uint8))[1].tobytes())
    image = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (900, 225, 3)


def test_an_empty_run_still_gives_a_page(tmp_path):
    path = report.write(tmp_path, [], model=FakeModel(), datasets={})
    text = Page(path.read_text()).text
    assert "No real mammogram was evaluated" in text and "no metrics.jsonl" in text


def test_a_page_of_few_real_films_speaks_of_no_phantoms_and_shows_no_path(tmp_path):
    outcome = Result("own/zero_shot", "", {"mass/auroc": statistics.entry(0.8, n=9)})
    path = report.write(
        tmp_path,
        [outcome],
        model=FakeModel(),
        datasets={"own": FakeDataset(2, real=True, name="own")},
        command="python -m mammoclip_jax.evaluate --data=/home/someone/private/own --workdir=runs/x",
    )
    page = Page(path.read_text())
    assert "saliency" not in page.ids
    assert not any(words in page.text for words in ("What is phantom", "of phantoms", "computer phantoms", "marks: ph"))
    assert set(page.links) >= {f"#{name}" for name in page.ids}
    assert "Nothing could be measured" not in page.text and "all that were stand under Results" in page.text
    assert "--data=own --workdir=runs/x" in page.text and "someone" not in path.read_text()


def test_curves_leave_out_what_has_no_value():
    found = plots.curves([{"step": 1, "loss": 2.0, "unknown": 1.0}, {"step": 2, "loss": None, "gradient_norm": None}])
    assert [plot.title for plot in found] == ["Training loss"]
    assert found[0].light.startswith(b"<?xml") and found[0].light != found[0].dark


def test_rows_of_a_table_group_metrics_with_their_baselines():
    entry = statistics.entry
    found = Result(
        "d/retrieval",
        "",
        {
            "a/recall@1": entry(0.5, 0.4, 0.6, n=9),
            "a/chance@1": entry(0.1, n=9),
            "a/commonest@1": entry(0.2, n=9),
            "b/recall@1": entry(None, n=0, reason="nothing"),
        },
    )
    table = display.pivot(found)
    assert table["columns"] == ["R@1"]
    first, second = table["rows"]
    assert first["cells"] == [
        {
            "value": "50.0\u00a0%",
            "interval": "40.0 to 60.0\u00a0%",
            "reason": "",
            "baselines": ["chance 10.0\u00a0%", "commonest texts 20.0\u00a0%"],
        }
    ]
    assert second == {"name": "b", "cells": [], "reason": "nothing"}


def test_headlines_leave_out_what_has_few_cases_or_no_value():
    entry = statistics.entry
    found = display.headlines(
        [
            Result("big/zero_shot", "", {"mass/auroc": entry(0.8, 0.7, 0.9, n=50), "cancer/auroc": entry(None, n=50)}),
            Result("small/zero_shot", "", {"mass/auroc": entry(1.0, n=4)}),
            Result("big/saliency", "", {"mass/pointing_game": entry(0.6, n=30), "mass/centre_guess": entry(0.1, n=30)}),
        ]
    )
    assert [(h.title, h.source, h.baseline) for h in found] == [
        ("Zero-shot AUROC, mass", "big", 0.5),
        ("Map points at the mass", "big", 0.1),
    ]


def test_no_two_headlines_have_one_title():
    metrics = {"mass/pointing_game": statistics.entry(0.6, n=30)}
    found = display.headlines([Result("big/saliency", "", metrics), Result("big/saliency_grad_cam", "", metrics)])
    assert [h.title for h in found] == ["Map points at the mass, big", "Map points at the mass, big, saliency grad cam"]


def test_json_is_strict_and_scalars_leave_out_what_has_no_value(tmp_path):
    results = [
        Result(
            "d/e",
            "p",
            {
                "a/x": statistics.entry(np.float32(0.5), np.nan, np.inf, n=np.int64(3)),
                "a/y": statistics.entry(None, n=0, reason="r"),
            },
        )
    ]
    result.write_json(tmp_path / "deep" / "r.json", result.to_json(results))
    read = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert read["metrics"]["d/e/a/x"] == {"value": 0.5, "low": None, "high": None, "n": 3}
    assert result.scalars(results) == {"eval/d/e/a/x": 0.5}
    assert result.to_rows(results)[1]["reason"] == "r"
