"""The table of predictions that evaluators store, and reading it back.

One row an image and label, named "predictions" among a result's tables; a label with classes may have a file of its
own, "predictions_<label>".

| column                      | is                                                                                   |
|-----------------------------|--------------------------------------------------------------------------------------|
| dataset, patient, study,    | as in the data set's index (data/manifest.py); where a breast or an exam is scored   |
| image, laterality, view     | as a whole, those of its first image                                                 |
| label                       | what is predicted: "mass", "density"                                                 |
| truth                       | 1, 0, or for a label with classes the class's name; empty: unknown                   |
| score                       | of a yes/no label: the higher, the likelier; empty for a label with classes          |
| p_<class>                   | of a label with classes: probability of each class; empty for other labels           |
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError

IDENTITY = ("dataset", "patient", "study", "image", "laterality", "view")
COLUMNS = (*IDENTITY, "label", "truth")
FILES = "predictions*.csv"
EVALUATED = "evaluation"  # where `evaluate` writes in the folder of a run


class Predicted(NamedTuple):
    """The predictions of one label."""

    label: str
    rows: pd.DataFrame  # the columns IDENTITY, one row an image, 0..n-1
    truth: np.ndarray  # float [n]: 1, 0, or the class's number; NaN: unknown
    prediction: np.ndarray  # float [n], or [n, K]
    classes: tuple[str, ...]  # K names; () for a yes/no label


def read(path: str | Path) -> pd.DataFrame:
    """The table in a CSV file: identifiers, label and truth as str ("": unknown), score and p_<class> as float.

    Raises:
        UserError: there is no such file, it lacks a column, has no rows, an image twice, or what is not a number.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no file {path}. Give a {FILES} that evaluate wrote, or a folder that holds it."
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table: {error}.") from error
    missing = [column for column in COLUMNS if column not in table]
    numbers = [column for column in table if column == "score" or column.startswith("p_")]
    if missing or not numbers:
        lacking = ", ".join(missing) or "score (or p_<class>)"
        raise UserError(
            f"{path} is no table of predictions: it has no column {lacking}; it has {', '.join(table.columns)}."
        )
    if table.empty:
        raise UserError(f"{path} has no rows.")
    for column in numbers:
        table[column] = _numbers(table[column], path)
    twice = table.duplicated(["dataset", "image", "label"])
    if twice.any():
        row = table[twice].iloc[0]
        raise UserError(
            f"{path}: image {row['image']!r} of {row['dataset']!r} occurs twice for label "
            f"{row['label']!r}; each image should have one row a label."
        )
    return table


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(column.replace("", "nan"), errors="coerce")
    wrong = numbers.isna() & ~column.str.lower().isin(["", "nan"])
    if wrong.any():
        raise UserError(
            f"{path}, line {wrong.idxmax() + 2}: {column.name} is {column[wrong.idxmax()]!r}, not a number."
        )
    return numbers.astype(np.float64)


def read_all(path: str | Path) -> dict[str, pd.DataFrame]:
    """{name: table} of a file, or of all in a result folder; a name is the path in the folder without ".csv".

    Of a run that was evaluated again, the folder of `evaluate` is read and not that of the training's end.

    Raises:
        UserError: a folder without predictions, or as `read`.
    """
    path = Path(path)
    if not path.is_dir():
        return {path.stem: read(path)}
    if (path / EVALUATED).is_dir() and any((path / EVALUATED).rglob(FILES)):
        path = path / EVALUATED
    files = sorted(path.rglob(FILES))
    if not files:
        raise UserError(f"{path} holds no {FILES}. Evaluate with zero_shot or classification and this folder as --out.")
    return {file.relative_to(path).with_suffix("").as_posix(): read(file) for file in files}


def labels(table: pd.DataFrame, source: str = "the predictions") -> Iterator[Predicted]:
    """Each label of a table, in order of appearance.

    Raises:
        UserError: a truth that is neither 0 nor 1, nor a class with a column p_<class>; a label without predictions.
    """
    for label, part in table.groupby("label", sort=False):
        part = part.reset_index(drop=True)
        columns = [c for c in part if c.startswith("p_") and part[c].notna().any()]
        if not columns and not ("score" in part and part["score"].notna().any()):
            raise UserError(f"{source}: label {label!r} has neither a score nor any p_<class>.")
        classes = tuple(column[2:] for column in columns)
        prediction = part[columns] if columns else part["score"]
        yield Predicted(
            str(label),
            part[list(IDENTITY)],
            _truth(part["truth"], classes, f"{source}, label {label!r}"),
            prediction.to_numpy(dtype=np.float64),
            classes,
        )


def _truth(column: pd.Series, classes: tuple[str, ...], source: str) -> np.ndarray:
    values = class_numbers(column, classes) if classes else pd.to_numeric(column, errors="coerce").to_numpy(float)
    blank = column.isna() | column.astype(str).str.lower().isin(["", "nan", "none"])
    wrong = ~blank.to_numpy() & (np.isnan(values) if classes else ~np.isin(values, [0, 1]))
    if wrong.any():
        known = ", ".join(classes) if classes else "0, 1"
        raise UserError(f"{source}: truth is {str(column[wrong.argmax()])!r}; it should be one of {known}, or empty.")
    return values


def class_numbers(truth, classes) -> np.ndarray:
    """Float [n]: the place of each name of `truth` among `classes`; NaN where it is none of them."""
    number = {str(name): place for place, name in enumerate(classes)}
    return np.array([number.get(str(name), np.nan) for name in truth], dtype=np.float64)
