"""The page of a table of regions: some images with what was found in them, and the counts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.data.preview.cards import regions_card
from mammoclip_jax.data.preview.page import write_page
from mammoclip_jax.data.preview.sample import spread
from mammoclip_jax.data.regions.job import OVERLAPS
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.data.store.shards import Dataset

MOST = 16  # regions drawn in an image


def lines(counts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What was counted (`data.regions.job.find`), in words."""
    found = [(label or "no label", number) for label, number in counts["by_label"].items()]
    for key, what in (("dropped", "left out"), ("unlabelled", "kept without a label")):
        found += [(f"{what}, {why}", number) for why, number in counts[key].items()]
    for label, number in counts["annotated"].items():
        found.append((f"annotated boxes, {label or 'no label'}", number))
        found += [(f"  covered by IoU {least}", counts[f"covered_{least}"].get(label, 0)) for least in OVERLAPS]
    return found


def preview(dataset: Dataset, name: str, count: int = 24, seed: int = 0) -> Path:
    """Writes DIR/regions-NAME.html: up to `count` images with their regions; the same bytes for the same seed.

    Images are chosen so that all labels are seen, and images without a region; names are those of the data set.

    Raises:
        UserError: there are no such regions, or they are another data set's.
    """
    table = region_tables.read(dataset.path, name)
    by_row = dict(list(table.frame.groupby("row")))
    rows = dataset.index.assign(
        found=[",".join(sorted(set(by_row[row]["label"]))) if row in by_row else "none" for row in range(len(dataset))]
    )
    cards = []
    for row in spread(rows, ("found", "view", "laterality"), count, seed):
        best = by_row.get(row, table.frame[:0]).nlargest(MOST, "score")
        items = [
            {"label": label or "no label", "box": box}
            for label, box in zip(best["label"], best[list(region_tables.BOX)].to_numpy().tolist(), strict=True)
        ]
        cards.append(regions_card(rows.iloc[row]["image"], rows.iloc[row], dataset.read(row), items))
    made = {key: table.info.get(key) for key in ("method", "options", "weights", "regions")}
    made["terms of the weights"] = [entry.get("title") for entry in table.info.get("origin", {}).get("licences", [])]
    return write_page(
        dataset.path / f"regions-{name}.html",
        "regions",
        name=name,
        names=", ".join(sorted(rows["dataset"].unique())),
        real=dataset.info.get("real", True),
        method=table.info["method"],
        counts=table.info["counts"],
        cards=cards,
        most=MOST,
        lines=lines(table.info["counts"]),
        made={key: value if isinstance(value, str) else json.dumps(value) for key, value in made.items() if value},
    )
