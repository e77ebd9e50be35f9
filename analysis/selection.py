"""Which runs: keys of a catalog by the names that people give them, and ``key=value`` on a command line."""

import difflib
import json
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final

import pandas as pd

from analysis.text import listed
from dst.records.catalog import COLUMNS
from dst.records.label import WRAPPERS

LABELS: Final = {
    "data": "config.data.name",
    "model": "config.model.name",
    "method": "method",
    "density": "config.sparsity.density",
}
"""Columns that name a row -> the catalog's columns that they show."""

TARGET: Final = "config.sparsity.reparametrize.density"
"""The catalog's column of the density that learned masks are asked for; ``density`` is that of their first ones."""

SCHEMA: Final = "schema"
"""The catalog's column of the version by which runs have their ids."""

NAMING: Final = (*LABELS, "target", *WRAPPERS)
"""Columns that name an experiment to a reader."""

FIGURES: Final = {
    "realised_density": "sparsity/density",
    "rs": "sparsity/rs",
    "flops_test_ratio": "flops/test_ratio",
    "flops_train_ratio": "flops/train_ratio",
}
"""Columns of means over the seeds -> the summary's values that they average."""

_NOTHING: Final = ("null", "none", "None", "")
HIDDEN: Final = ("identity", "attempt_folder", "attempt", "copies")
"""Columns of a catalog that nobody asks for or wants to save."""


class SelectionError(ValueError):
    """A key that no run has, or a value that none of them has for it."""


def named_columns(frame: pd.DataFrame) -> dict[str, str]:
    """Return each name that a user may give -> the column of the catalog: labels, columns, figures and config keys.

    A config key is named as in an override (``schedule.epochs``), a value of the summary as there (``val/accuracy``).
    """
    keys = {str(column).removeprefix("config."): str(column) for column in frame.columns}
    own = {name: name for name in COLUMNS}
    columns = {**keys, **own, **LABELS, "target": TARGET, **FIGURES, "accuracy": "test/accuracy"}
    return {name: column for name, column in columns.items() if column in frame.columns and column not in HIDDEN}


def column_of(frame: pd.DataFrame, key: str) -> str:
    """Return the column of the catalog that a key names; ``SelectionError`` says which ones are near."""
    columns = named_columns(frame)
    if key in columns:
        return columns[key]
    last = [name for name in columns if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = list(dict.fromkeys([*difflib.get_close_matches(key, columns, n=3, cutoff=0.6), *sorted(last)]))[:3]
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    labels = ", ".join(name for name in (*LABELS, "seed", "group", "state") if name in columns)
    raise SelectionError(
        f"no run has a key '{key}': {hint}Known are {labels}, every key of a config (python run.py --keys), "
        "and every value of a summary.json"
    )


def select(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the runs of a catalog that meet every condition ``key=value``; of one key given twice, either.

    Values are compared by type: 0.10 is 0.1, ``null`` is a value that is not there. ``SelectionError`` if a condition
    is none, its key is unknown, or no run meets it.
    """
    wanted: dict[str, list[str]] = {}
    for condition in where:
        key, equals, value = condition.partition("=")
        if not equals:
            raise SelectionError(f"'{condition}' is no condition: give it as key=value, e.g. density=0.1")
        wanted.setdefault(key.strip(), []).append(value.strip())
    for key, values in wanted.items():
        frame = _having(frame, key, values)
    return frame


def _having(frame: pd.DataFrame, key: str, values: Sequence[str]) -> pd.DataFrame:
    column = column_of(frame, key)
    for value in values:
        if not any(is_value(cell, value) for cell in frame[column]):
            there = sorted({value_text(cell) for cell in frame[column]})
            raise SelectionError(f"no run has {key}={value}: there are {listed(there, 12) or 'none'}")
    return frame[[any(is_value(cell, value) for value in values) for cell in frame[column]]]


def is_value(cell: Any, text: str) -> bool:
    """Return whether a cell of a catalog is the value that a text stands for."""
    if pd.isna(cell):
        return text in _NOTHING
    if isinstance(cell, bool):
        return text.lower() == str(cell).lower()
    if isinstance(cell, Real):
        return _number(text) == cell
    return str(cell) == text or _same_json(str(cell), text)


def value_text(cell: Any) -> str:
    """Return a cell of a catalog as it is written in a condition."""
    if pd.isna(cell):
        return "null"
    return (
        str(cell).lower() if isinstance(cell, bool) else format(cell, ".10g") if isinstance(cell, Real) else str(cell)
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _same_json(cell: str, text: str) -> bool:
    """Return whether two texts are the same list, whatever their spaces are."""
    if not cell.startswith(("[", "{")):
        return False
    try:
        return bool(json.loads(cell) == json.loads(text))
    except ValueError:
        return False
