"""Tables of numbers as text and as LaTeX."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation.page import display
from mammoclip_jax.evaluation.page.tables import latex_table, shown

TABLE = pd.DataFrame(
    {
        "metric": ["mass/auroc_image", "100 % & more"],
        "value": [0.83, None],
        "low": [0.78, None],
        "high": [0.88, np.nan],
        "n": [40, 0],
        "p_delong": [1e-9, 0.25],
        "positives": [12.0, np.nan],
    }
)


def test_numbers_have_three_decimals_small_p_say_so_and_none_is_a_dash():
    found = shown(TABLE)
    assert found.iloc[0].tolist() == ["mass/auroc_image", "0.830", "0.780", "0.880", "40", "<0.001", "12"]
    assert found.iloc[1].tolist() == ["100 % & more", "–", "–", "–", "0", "0.250", "–"]


def test_latex_is_escaped_and_intervals_stand_behind_their_value():
    text = latex_table(TABLE, caption="Of 50 %", label="tab:a_b")
    assert r"mass/auroc\_image & 0.830 [0.780, 0.880] & 40 & <0.001 & 12 \\" in text
    assert r"100 \% \& more & -- & 0 & 0.250 & -- \\" in text
    assert r"p\_delong" in text and "low" not in text and r"\label{tab:a_b}" in text
    assert text.count(r"\\") == 3 and r"\toprule" in text


def test_what_random_weights_do_is_headed_as_what_trained_ones_do():
    assert display.heading("mass/ap@0.5_randomised") == ("AP, IoU 0.5, random weights", "plain")
    assert display.heading("mass/energy_ratio_randomised") == ("Energy ÷ share, random weights", "times")


def test_bounds_have_the_digits_that_tell_them_apart():
    for low, high, kind, said in (
        (0.7, 0.9, "plain", "0.700 to 0.900"),
        (0.83121, 0.83134, "plain", "0.8312 to 0.8313"),
        (0.5, 0.50012, "percent", "50.00 to 50.01\u00a0%"),
        (1.0, 1.0, "plain", "1.000000 to 1.000000"),
    ):
        assert display.interval({"low": low, "high": high}, kind) == said


def test_tables_of_all_pages_scroll_in_their_frame_and_show_that_there_is_more():
    package = Path(display.__file__).parents[2]
    pages = {path.name: path.read_text() for path in package.rglob("*.html.jinja")}
    assert len(pages) >= 5
    for name, text in pages.items():
        assert text.count("<table>") == len(re.findall(r'<div class="scroll[^>]*><table>', text)), name
    framed = [text for text in pages.values() if "<style>" in text and ".scroll {" in text]
    assert len(framed) == 2 and all("var(--shade)" in text and text.count("--shade: #") == 2 for text in framed)
