"""One exam as a page of its own."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def exam_page(exam: Mapping[str, Any], prediction: Mapping[str, Any], folder: Path) -> str:
    """Self-contained HTML of one exam: its scores, and what its views show.

    Args:
        exam: one of "exams", as `delivery.folder.deliver` writes it; its paths of pictures are those below `folder`.
        prediction: what is the same for all exams.
    """
    del folder
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{score['max']:+.3f}</td></tr>" for label, score in exam["scores"].items()
    )
    title = html.escape(exam["exam"])
    meaning = html.escape(prediction["aggregation"]["view"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1><p>{meaning}</p><table>{rows}</table></html>"
    )
