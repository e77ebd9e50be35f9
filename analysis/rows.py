"""The rows of tables: experiments, each all runs that differ in nothing but the seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.runs import ACCURACY, SEED, comparable, is_done, plain
from analysis.sweeps import folded
from analysis.text import cell_text
from dst.records.catalog import copies_in, newest, recorded
from dst.records.same import copies_note
from dst.records.states import State
from dst.words import few

MISSING: Final = "missing"
"""The column of tables that says what became of seeds without a figure."""


class TableError(ValueError):
    """One table cannot show these runs."""


@dataclass(frozen=True)
class Row:
    """An experiment in a table: all runs that differ in nothing but the seed, in order of seed.

    ``labels``: name -> value, what tells it from the others. ``shown``: the same as texts are shown (see ``folded``).
    ``expected``: the seeds that any experiment of its sweeps has.
    """

    labels: dict[str, Any]
    shown: dict[str, Any]
    runs: pd.DataFrame
    expected: frozenset[int]

    def by_seed(self, column: str, scale: float = 1.0) -> dict[int, float]:
        """Return the values of a column of the catalog by seed, of runs that are done and have it."""
        if column not in self.runs:
            return {}
        done = self.runs[is_done(self.runs)].dropna(subset=[column])
        return dict(zip(done[SEED].astype(int), scale * done[column].astype(float), strict=True))

    @property
    def name(self) -> str:
        """All its labels as one line of text."""
        return row_name(self.shown)


def rows(frame: pd.DataFrame) -> list[Row]:
    """Return the experiments of a catalog, in order of their labels.

    ``TableError`` if a seed of an experiment occurs twice.
    """
    runs, columns = comparable(frame)
    seeds = {sweep: set(members[SEED]) for sweep, members in runs.groupby("sweep")}
    members = [found for _, found in runs.groupby("experiment")]
    labels = [{name: plain(found[key].iloc[0]) for name, key in columns.items()} for found in members]
    shown = folded(labels, [int(found["sweep"].iloc[0]) for found in members], [len(found) for found in members])
    expected = [frozenset().union(*(seeds[sweep] for sweep in found["sweep"])) for found in members]
    found_rows = [Row(*parts) for parts in zip(labels, shown, members, expected, strict=True)]
    for row in found_rows:
        _refuse_twice(row.runs)
    return sorted(found_rows, key=lambda row: [rank(value) for value in (*row.shown.values(), *row.labels.values())])


def completeness(row: Row) -> dict[str, Any]:
    """Return how many of the expected seeds are done, ``n`` of ``expected``, and what became of the others."""
    return completeness_of(row.runs, row.expected, set(row.runs.loc[is_done(row.runs), SEED]), ACCURACY)


def completeness_of(runs: pd.DataFrame, expected: frozenset[int], found: set[int], what: str) -> dict[str, Any]:
    """Return how many of the expected seeds were found, and what became of the runs that lack ``what``."""
    ended = {**dict.fromkeys(expected, "not run"), **dict(zip(runs[SEED], runs["state"], strict=True))}
    ended |= {seed: f"done without {what}" for seed in expected - found if ended[seed] == State.DONE}
    missing = "; ".join(f"seed {cell_text(seed)} {ended[seed]}" for seed in sorted(expected - found))
    return {"n": len(found), "expected": len(expected), MISSING: missing}


def row_name(labels: Mapping[str, Any]) -> str:
    """Return the labels of a row as one text."""
    parts = [cell_text(labels[name]) for name in ("data", "model", "method")]
    others = [name for name in labels if name not in ("data", "model", "method")]
    return " ".join([*parts, *(f"{name}={cell_text(labels[name])}" for name in others)])


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return a note for each run whose record does not exist or cannot be read, and for each that has copies."""
    runs = newest(frame)
    lacking = [f"not in the table: {error}" for error in runs["error"].drop(recorded(runs).index).sort_values()]
    return lacking + _copied(runs)


def _copied(runs: pd.DataFrame) -> list[str]:
    """Return a note for each run that has copies, the first few of them named."""
    places = zip(runs["id"], runs["folder"], map(copies_in, runs.get("copies", [None] * len(runs))), strict=True)
    notes = [copies_note(run, Path(folder), [*map(Path, copies)]) for run, folder, copies in places if copies]
    return few(notes, more="more runs have copies")


def rank(value: Any) -> tuple[int, Any]:
    """Return a key that sorts the values of a mixed column: missing values, then numbers, then text."""
    return (0, 0) if pd.isna(value) else (2, value) if isinstance(value, str) else (1, value)


def _refuse_twice(runs: pd.DataFrame) -> None:
    if runs[SEED].duplicated().any():
        folders = runs.loc[runs[SEED].duplicated(keep=False), "folder"]
        raise TableError(f"one seed of one experiment twice, under different ids: {', '.join(folders)}. Leave one out")
