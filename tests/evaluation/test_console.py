"""What an evaluation says on the terminal: few lines that fit it, no word cut, and where the rest is."""

import re

import pytest

from mammoclip_jax.evaluation import console, statistics
from mammoclip_jax.evaluation.result import Result

FEW = "no interval: 4 patients of the rarest class, 10 are needed"
FOUND = [
    Result(
        "d/zero_shot",
        "",
        {
            "mass/auprc": statistics.entry(0.6, 0.5, 0.7, n=50),
            "mass/auroc": statistics.entry(0.8, 0.7, 0.9, n=50),
            "mass/auroc_large": statistics.entry(None, n=0, reason="none is large"),
            "scar/auroc": statistics.entry(0.75, n=8, reason=FEW),
            "cancer/auroc": statistics.entry(None, n=0, reason="no image has this label"),
        },
    ),
    Result(
        "d/a_saliency_with_a_long_name",
        "",
        {
            f"mass/localised_0.95_iou_{i}_minus_brightness": statistics.entry(0.1 * i, 0.0, 1.0, n=9)
            for i in range(1, 30)
        },
    ),
]


def test_the_long_table_names_values_and_reasons():
    text = console.long_table(FOUND)
    assert re.search(r"d/zero_shot/mass/auroc +0\.800 +0\.700 to 0\.900 +50", text)
    assert re.search(rf"d/zero_shot/scar/auroc +0\.750 +{FEW} +8", text)
    assert "not measured: d/zero_shot/cancer: no image has this label" in text
    assert "not measured: d/zero_shot/mass/auroc_large: none is large" in text


@pytest.mark.parametrize("width", [72, 100, 300])
def test_the_short_table_fits_the_terminal(width, tmp_path):
    path = tmp_path / console.NAME
    lines = console.short_table(FOUND, path, width).splitlines()
    assert len(lines) <= console.LINES
    assert all(len(line) <= max(width, len(str(path))) for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "d/zero_shot/mass/auroc 0.800 0.700 to 0.900 50" in text
    assert text.endswith(f"34 figures, 2 of them not measured and why: {path}")
    assert lines[0].split() == ["metric", "value", "95", "%", "interval", "n"]
    assert "d/a_saliency" in text and "scar/auroc 0.750" in text  # of each result, and what leads before what does not
    known = " ".join([FEW, str(path), "to figures them and why", *(f"{r.name}/{m}" for r in FOUND for m in r.metrics)])
    whole = set(re.findall(r"[A-Za-z]+", f"{known} {lines[0]}"))
    assert {part for line in lines for part in re.findall(r"[A-Za-z]+", line)} <= whole | {"not", "measured"}


def test_a_figure_without_interval_says_why_in_the_short_table(tmp_path):
    text = console.short_table(FOUND[:1], tmp_path / "t", 120)
    assert re.search(rf"scar/auroc +0\.750 +{FEW} +8", text)


def test_showing_writes_the_long_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console.terminal, "width", lambda: 90)
    console.show(FOUND, tmp_path)
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= console.LINES and str(tmp_path / console.NAME) in out
    assert (tmp_path / console.NAME).read_text() == console.long_table(FOUND) + "\n"


def test_nothing_measured_is_said(tmp_path):
    nothing = [Result("d/e", "", {"x/auroc": statistics.entry(None, n=0, reason="r")}), Result("d/f", "", {})]
    assert (
        console.short_table(nothing, tmp_path / "t", 200)
        == f"1 figures, 1 of them not measured and why: {tmp_path / 't'}"
    )
    assert console.line(nothing) == "d/e nothing could be measured; d/f nothing could be measured"


def test_a_line_has_the_figures_that_lead():
    said = console.line(FOUND)
    assert said.startswith(
        "d/zero_shot mass/auroc 0.800, scar/auroc 0.750; d/a_saliency_with_a_long_name mass/localised"
    )
    assert len(said.split("; ")[1].split(", ")) == 3
