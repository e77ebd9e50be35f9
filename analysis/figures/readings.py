"""What figures read from the folders of runs, and mean and deviation of it over seeds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from dst.records.catalog import recorded
from dst.records.states import State
from dst.records.store import RecordError

Rows = list[dict[str, Any]]

_MOST_POINTS: Final = 300
"""Points of a line: more could not be told apart, and would make a file of vectors large."""


def read(frame: pd.DataFrame, reader: Callable[[Path], Rows]) -> tuple[dict[str, Rows], list[str]]:
    """Return the rows of each run by its folder, and a note for each run whose file is damaged."""
    found, notes = {}, []
    for folder in recorded(frame)["folder"]:
        try:
            found[folder] = reader(Path(folder))
        except (RecordError, OSError) as error:
            notes.append(f"left out: {error}")
    return found, notes


def over_seeds(runs: pd.DataFrame, columns: Mapping[str, Mapping[Any, float]]) -> pd.DataFrame:
    """Return mean and deviation over the runs of one line, by step or layer: columns ``mean`` and ``std``.

    ``columns``: folder -> {place: value}. If a run is done, those that are not are left out: they would bend the mean
    where they end.
    """
    done = runs[runs["state"] == State.DONE]
    chosen = [columns[folder] for folder in (done if len(done) else runs)["folder"] if columns.get(folder)]
    if not chosen:
        return pd.DataFrame({"mean": [], "std": []})
    places = list(dict.fromkeys(place for column in chosen for place in column))
    values = pd.DataFrame([[column.get(place, np.nan) for place in places] for column in chosen], columns=places)
    return pd.DataFrame({"mean": values.mean(), "std": values.std(ddof=1)}, index=places)


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table by step, no more than a line can show, the first and the last among them."""
    table = table.sort_index()
    return (
        table.iloc[np.unique(np.linspace(0, len(table) - 1, _MOST_POINTS).round().astype(int))] if len(table) else table
    )


def finite(rows: Sequence[Mapping[str, Any]], key: str, value: str) -> dict[Any, float]:
    """Return ``{row[key]: row[value]}`` of the rows that have the value."""
    return {row[key]: float(row[value]) for row in rows if isinstance(row.get(value), int | float)}
