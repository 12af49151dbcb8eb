"""Damaged tables: whatever is in a cell, each line ends in a row that keeps the invariants, or in a problem."""

import csv
import json
import math
import random
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mammoclip_jax.data import sources
from mammoclip_jax.data.check import check
from mammoclip_jax.data.manifest import LATERALITIES, SPLITS, checked
from mammoclip_jax.errors import UserError

sys.path.append(str(Path(__file__).parent / "sources"))  # the small sets of the adapters' own tests

CELLS = [
    "",
    " ",
    "nan",
    "NaN",
    "NULL",
    "inf",
    "-1",
    "-0.0",
    "0",
    "1e400",
    "1e30",
    "9" * 400,
    "-5.5",
    "1_0",
    "٣",
    "½",
    "💥" * 50,
    "é\u0301\u202e",
    '"',
    '""",',
    "a\nb",
    "a\r\nb\n",
    "\t",
    "[",
    "[]",
    "['CC'",
    "['', None, 1e999]",
    "[[1, 2], {3: 4}]",
    "{}",
    "(1, 2)",
    "None",
    "True",
    "../../../x",
    "/",
    "\\",
    "C:\\x",
    "x" * 5000,
    "2019-02-30",
    "99999999",
    "00000000",
    "L",
    "R",
    "both",
    "CC",
    "train",
    "test",
    "__import__('os')",
    "%s{0}$",
    "\x7f",
    "\u2028",
]


def vindr(root):
    made = import_module("test_vindr")
    return made.write(root, *made.made(6))


def rsna(root):
    made = import_module("test_rsna")
    return made.write(root, made.made(8))


def clip_reports(root):
    made = import_module("test_mammo_clip")
    return made.write(root / "clip_pretrain_100.csv", made.REPORT_COLUMNS, made.reports(6))


def clip_attributes(root):
    made = import_module("test_mammo_clip")
    return made.write(root / "clip_vindr_final.csv", made.ATTRIBUTE_COLUMNS, made.attributes(6))


def clip_detection(root):
    made = import_module("test_mammo_clip")
    return made.write(root / "vindr_detection_v1_folds.csv", made.DETECTION_COLUMNS, made.detection())


def embed(root):
    made = import_module("test_embed")
    images = [
        made.image(
            str(n % 4),
            str(n % 6),
            f"i{n}",
            "LR"[n % 2],
            ViewPosition="CC",
            num_roi="1",
            ROI_coords="((10, 20, 30, 40),)",
        )
        for n in range(12)
    ]
    findings = [
        made.finding(str(n % 4), str(n % 6), "LRB"[n % 3], "NABSP"[n % 5], age_at_study="50", massshape="O")
        for n in range(12)
    ]
    return made.folder(root, images, findings)


def cmmd(root):
    files = [("D1-0001", "R", "CC", "1-1"), ("D1-0002", "L", "MLO", "1-1"), ("D2-0001", "L", "CC", "1-1")]
    return import_module("test_cmmd").folder(root, files)


def same(module):
    def maker(root):
        made = import_module(f"test_{module}")
        return (getattr(made, "make", None) or made.folder)(root)

    return maker


# Set -> adapter, maker, the tables with a line an image, options.
SETS = {
    "vindr": ("vindr", vindr, "breast-level*", {}),
    "rsna": ("rsna", rsna, "train*", {}),
    "mammo_clip reports": ("mammo_clip", clip_reports, "", {}),
    "mammo_clip attributes": ("mammo_clip", clip_attributes, "", {}),
    "mammo_clip detection": ("mammo_clip", clip_detection, "", {}),
    "embed": ("embed", embed, "", {}),
    "cmmd": ("cmmd", cmmd, "", {}),
    "inbreast": ("inbreast", same("inbreast"), "INbreast*", {}),
    "nl_breast_screening": ("nl_breast_screening", same("nl_breast_screening"), "*", {}),
    "cbis_ddsm": ("cbis_ddsm", same("cbis_ddsm"), "", {}),
    "mias": ("mias", same("mias"), "", {}),
    "report_csv": ("report_csv", same("report_csv"), "*", {"labels": "density,age", "date": "age"}),
    "mimic_cxr": ("mimic_cxr", same("mimic_cxr"), "*metadata*", {}),
    "chexpert": ("chexpert", same("chexpert"), "*", {}),
}


def load(path: Path) -> tuple[list[list[str]], str]:
    """Lines of cells, the first of them the names; and the delimiter."""
    if path.suffix == ".txt":
        return [line.split(" ") for line in path.read_text().split("\n")], " "
    with open(path, newline="") as file:
        delimiter = ";" if file.readline().count(";") > 2 else ","
        file.seek(0)
        return list(csv.reader(file, delimiter=delimiter)), delimiter


def save(path: Path, lines: list[list[str]], delimiter: str) -> None:
    if delimiter == " ":
        path.write_text("\n".join(" ".join(" ".join(cell.split()) for cell in line) for line in lines))
        return
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)


def damage(lines: list[list[str]], rng: random.Random) -> bool:
    """Damages the lines in place; True if it was more than single cells."""
    names, body = lines[0], lines[1:]
    kind = rng.choice(["cells"] * 8 + ["empty column", "swapped columns", "renamed column", "shuffled column"])
    column = rng.randrange(len(names))
    if kind == "cells":
        for _ in range(rng.randint(1, 4)):
            line = rng.choice(body)
            if line:
                position = rng.randrange(len(line))
                other = rng.choice(body)
                line[position] = rng.choice([*CELLS, *[other[min(position, len(other) - 1)] if other else ""] * 10])
        return False
    for line in body:
        if kind == "empty column" and column < len(line):
            line[column] = ""
    if kind == "swapped columns":
        other = rng.randrange(len(names))
        names[column], names[other] = names[other], names[column]
    elif kind == "renamed column":
        names[column] += "x"
    elif kind == "shuffled column":
        cells = [line[column] for line in body if column < len(line)]
        rng.shuffle(cells)
        for line in body:
            if column < len(line):
                line[column] = cells.pop()
    return True


def refuse(constant: str):
    raise AssertionError(f"{constant} in JSON")


def hold(table) -> None:
    """The invariants of manifest rows, counted once more."""
    assert table.rows["image"].is_unique
    for row in table.rows.itertuples():
        assert row.patient.strip() and row.study.strip() and row.image.strip()
        assert row.laterality in LATERALITIES and row.split in SPLITS and row.view == row.view.upper()
        assert len(row.texts) == len(row.sections) and all(text.strip() for text in row.texts)
        labels = json.loads(row.labels, parse_constant=refuse)
        assert all(isinstance(value, (int, float, str)) for value in labels.values()), labels
        assert labels.get("birads", 0) in range(7) and labels.get("cancer", 0) in (0, 1)
        for item in json.loads(row.boxes, parse_constant=refuse):
            x0, y0, x1, y1 = item["box"]
            assert all(map(math.isfinite, item["box"])) and x0 < x1 and y0 < y1 and x1 > 0 and y1 > 0
            if row.size:
                height, width = map(int, row.size.split())
                assert x0 < width and y0 < height
    for problem in table.problems:
        assert problem.stage and problem.reason and problem.remedy
    assert not (table.rows.groupby("patient")["split"].nunique() > 1).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_damaged_tables(name, tmp_path, thorough):
    """25 tables of each set, or 100, each with one to four damaged cells or a damaged column."""
    mutants = 100 if thorough else 25
    source, make, per_image, options = SETS[name]
    root = make(tmp_path / "set" if source == "chexpert" else tmp_path)
    read = sources.reader(source)
    paths = sorted(path for ending in ("*.csv", "Info.txt") for path in root.rglob(ending))
    hold(checked(read(root, **options)))
    read_whole = 0
    for seed in range(mutants):
        rng = random.Random(f"{name} {seed}")
        path = rng.choice(paths)
        original = path.read_bytes()
        lines, delimiter = load(path)
        whole = damage(lines, rng)
        save(path, lines, delimiter)
        try:
            table = checked(read(root, **options))
        except UserError as error:
            # Single cells cost their lines, unless they put a patient into two splits.
            assert whole or "more than one split" in str(error), (seed, error)
        else:
            read_whole += 1
            hold(table)
            check(table, root, headers=False)
            if path.suffix == ".csv":
                counted = sum(len(load(path)[0]) - 1 for path in paths)
                assert table.table_rows >= counted, seed
            if per_image and path.match(per_image):
                accounted = set(table.rows["row"]) | {problem.row for problem in table.problems}
                assert {f"{path.name}:{number}" for number in range(2, len(lines) + 1)} <= accounted, seed
        finally:
            path.write_bytes(original)
    assert read_whole > mutants / 2
