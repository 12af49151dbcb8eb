"""The published values: one row a number of Mammo-CLIP's charts, with how it was read and how it was measured.

A row's name is TABLE/STEP/MODEL: "vindr_mass/linear_probe_10/b5", its step the task and the per cent of training data.
"""

import fnmatch
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

FILE = Path(__file__).with_name("mammo_clip.json")
TASKS = ("zero_shot", "linear_probe", "finetune", "detection", "localisation")


class Row(NamedTuple):
    """One published number.

    Attributes:
        step: "zero_shot", "linear_probe_10", "finetune_100"; of boxes "frozen_100", "finetune_10"; "factor".
        task: one of TASKS.
        fraction: per cent of the training data; 0 where nothing is learnt.
        dataset: the source that prepares it; label: a key of the manifest's labels.
        value: as published, a fraction of 1; tolerance: what reading it may have cost on either side.
        reading: how the number was obtained; other: what another source says, None where none contradicts.
        how: the published protocol.
        model: the column; model_title, encoder, weights: what it is and where its weights are.
    """

    table: str
    title: str
    step: str
    task: str
    fraction: int
    dataset: str
    label: str
    metric: str
    value: float
    tolerance: float
    reading: str
    other: float | None
    other_source: str
    how: str
    model: str
    model_title: str
    encoder: str
    weights: str

    @property
    def name(self) -> str:
        return f"{self.table}/{self.step}/{self.model}"


@functools.cache
def rows() -> tuple[Row, ...]:
    """Every published value, in the order of the tables."""
    known = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(
        _row(known, table, step, model, value)
        for table, content in known["tables"].items()
        for step, values in content["rows"].items()
        for model, value in zip(content["columns"], values, strict=True)
    )


def _row(known: dict, table: str, step: str, model: str, value: float) -> Row:
    content, column = known["tables"][table], known["models"][model]
    name = f"{table}/{step}/{model}"
    kind, _, fraction = step.rpartition("_") if step[-1].isdigit() else (step, "", "0")
    reading = known["readings"]["second_hand" if name in known["second_hand"] else column["reading"]]
    conflict = known["conflicts"].get(name, {"value": None, "text": ""})
    return Row(
        table,
        content["title"],
        step,
        content.get("task", kind),
        int(fraction),
        content["dataset"],
        content["label"],
        content["metric"],
        value,
        reading["tolerance"],
        reading["text"],
        conflict["value"],
        conflict["text"],
        known["protocols"][content["protocols"][kind]],
        model,
        column["title"],
        column["encoder"],
        column["weights"],
    )


def chosen(patterns: Sequence[str]) -> list[Row]:
    """The rows that any of the patterns fits: "vindr_mass", "vindr_mass/zero_shot", "*/linear_probe_*/b5"; none: all.

    Raises:
        UserError: a pattern fits none.
    """
    hits = {pattern: [row for row in rows() if _fits(row.name, pattern)] for pattern in patterns}
    for pattern, fitting in hits.items():
        if not fitting:
            known = {"/".join(row.name.split("/")[:depth]) for row in rows() for depth in (1, 2, 3)}
            raise UserError(
                f"no published row is called {pattern!r}.{suggestion(pattern, sorted(known))} Rows are "
                "TABLE/STEP/MODEL; --list prints them all."
            )
    wanted = {row.name for fitting in hits.values() for row in fitting}
    return [row for row in rows() if not patterns or row.name in wanted]


def _fits(name: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")
