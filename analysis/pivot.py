"""Tables of one value by two keys, such as accuracy by methods and densities."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pandas as pd

from analysis.contrasts import Contrast, to_best
from analysis.results import SUMMARIES
from analysis.rows import MISSING, TableError, completeness_of, rank, rows
from analysis.runs import SEED, is_done, plain
from analysis.selection import column_of, value_text
from analysis.text import cell_text, counted, listed

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One experiment's figure in a pivot, at a row and a column: the values of the keys there."""

    row: Key
    column: Key
    value: float
    std: float
    n: int
    expected: int
    missing: str
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Pivot:
    """A value by the keys of rows and of columns, and which cells are compared to the best of their column."""

    row_keys: tuple[str, ...]
    column_keys: tuple[str, ...]
    value: str
    cells: tuple[Cell, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def is_accuracy(self) -> bool:
        """Whether the value is a share of correct answers, which is shown in percent, and more is better."""
        return self.value.endswith("accuracy")

    @property
    def rows(self) -> list[Key]:
        """The values of the row keys, in order."""
        return _ordered(cell.row for cell in self.cells)

    @property
    def columns(self) -> list[Key]:
        """The values of the column keys, in order."""
        return _ordered(cell.column for cell in self.cells)

    def numbers(self) -> pd.DataFrame:
        """Return a row a cell: the keys, the value, its deviation, ``n`` of ``expected`` seeds, and what is missing."""
        names = [*self.row_keys, *self.column_keys, self.value, f"{self.value}_std", "n", "expected", MISSING]
        lines = [(*c.row, *c.column, c.value, c.std, c.n, c.expected, c.missing) for c in self.cells]
        return pd.DataFrame(lines, columns=names)

    def text(self) -> pd.DataFrame:
        """Return the table to read: a row for each value of the row keys, a column for each of the column keys."""
        at = {(cell.row, cell.column): self.cell_text(cell) for cell in self.cells}
        table = {key: [cell_text(row[place]) for row in self.rows] for place, key in enumerate(self.row_keys)}
        for column in self.columns:
            table[named(self.column_keys, column)] = [at.get((row, column), cell_text(None)) for row in self.rows]
        return pd.DataFrame(table)

    def cell_text(self, cell: Cell) -> str:
        """Return a cell as text: its value, and its deviation if it has one."""
        mean, std = self.parts(cell)
        return f"{mean} ± {std}" if cell.n > 1 and not pd.isna(cell.std) else mean

    def parts(self, cell: Cell) -> tuple[str, str]:
        """Return the value and the deviation of a cell, each as text."""
        std = 0.0 if cell.std < 1e-9 * abs(cell.value) else cell.std  # sums of equal floats differ in the last digit
        specs = (".2f", ".2f") if self.is_accuracy else (".4g", ".2g")
        return cell_text(cell.value, specs[0]), cell_text(std, specs[1])

    def notes(self) -> list[str]:
        """Return what is missing, a line a cell, behind a line that says how many seeds the others have."""
        lacking = [cell for cell in self.cells if cell.n < cell.expected]
        whole = sorted({cell.n for cell in self.cells if cell.n == cell.expected})
        told = [f"n = {' or '.join(map(str, whole))}" + (" in all other cells" if lacking else "")] if whole else []
        return [*told, *(f"missing in {self.name(c)} ({counted(c.n, c.expected)}): {c.missing}" for c in lacking)]

    def places(self) -> list[tuple[str, str, int]]:
        """Return the whole name, the name in its column, and n of each cell."""
        return [(self.name(cell), named(self.row_keys, cell.row), len(cell.by_seed)) for cell in self.cells]

    def name(self, cell: Cell) -> str:
        """Return where a cell stands, as text."""
        return f"{named(self.row_keys, cell.row)}, {named(self.column_keys, cell.column)}"


def pivot(
    frame: pd.DataFrame, row_keys: Sequence[str], column_keys: Sequence[str], value: str, summary: str = "mean"
) -> Pivot:
    """Return a value of the runs by the values of keys; every key and value is named as in ``--where``.

    ``SelectionError`` if a key is unknown; ``TableError`` if runs that differ in more than the seed share a cell.
    """
    wanted = {key: column_of(frame, key) for key in (*row_keys, *column_keys, value)}
    numeric = pd.to_numeric(frame[wanted[value]], errors="coerce")
    if numeric.isna().all():
        raise TableError(f"'{value}' is no number in any run: choose another --value, e.g. accuracy or rs")
    runs, seeds = _runs(frame)
    places: dict[Key, list[Any]] = {}
    for run, *there in zip(runs.index, *(runs[wanted[key]] for key in (*row_keys, *column_keys)), strict=True):
        places.setdefault(tuple(map(plain, there)), []).append(run)
    splits_seeds = SEED in (wanted[key] for key in (*row_keys, *column_keys))
    cells = []
    for at in _ordered(places):
        members = runs.loc[places[at]]
        _refuse_several(named((*row_keys, *column_keys), at), members)
        expected = frozenset(members[SEED]) if splits_seeds else seeds[members["experiment"].iloc[0]]
        cells.append(_cell(at[: len(row_keys)], at[len(row_keys) :], members, expected, wanted[value], summary))
    found = Pivot(tuple(row_keys), tuple(column_keys), value, tuple(cells), ())
    is_tested = found.is_accuracy and summary == "mean" and not splits_seeds
    return replace(found, contrasts=_contrasts(cells) if is_tested else ())


def named(keys: Sequence[str], values: Sequence[Any]) -> str:
    """Return values of keys as text: ``density=0.1``."""
    return " ".join(f"{key}={cell_text(value)}" for key, value in zip(keys, values, strict=True))


def _runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, frozenset[int]]]:
    """Return the runs of a catalog that can be read, and the seeds that are expected of each experiment."""
    found = rows(frame)
    expected = {row.runs["experiment"].iloc[0]: row.expected for row in found}
    return pd.concat([row.runs for row in found]) if found else frame.iloc[:0], expected


def _cell(row: Key, column: Key, runs: pd.DataFrame, expected: frozenset[int], value: str, summary: str) -> Cell:
    done = runs[is_done(runs) & pd.to_numeric(runs[value], errors="coerce").notna()]
    scale = 100.0 if value.endswith("accuracy") else 1.0
    figure, std = SUMMARIES[summary](done, value)
    found = completeness_of(runs, expected, set(done[SEED]), value)
    by_seed = dict(zip(done[SEED].astype(int), scale * done[value].astype(float), strict=True))
    return Cell(row, column, scale * figure, scale * std, found["n"], found["expected"], found[MISSING], by_seed)


def _contrasts(cells: Sequence[Cell]) -> tuple[Contrast, ...]:
    """Compare the cells of each column to the best of it."""
    by_column = sorted(range(len(cells)), key=lambda place: [*map(rank, cells[place].column)])
    blocks = [[*places] for _, places in groupby(by_column, key=lambda place: cells[place].column)]
    return tuple(to_best([cell.by_seed for cell in cells], blocks))


def _refuse_several(where: str, runs: pd.DataFrame) -> None:
    different = runs.drop_duplicates("experiment")
    if len(different) < 2:
        return
    identities = [json.loads(text) for text in different["identity"]]
    keys = sorted({key for one in identities for key in one if key != "seed"})
    keys = [key for key in keys if len({json.dumps(one.get(key)) for one in identities}) > 1] or ["schema"]
    told = [f"{key} ({' and '.join(_values(different, key))})" for key in keys]
    raise TableError(
        f"{where} has runs that differ in {listed(told, 4)}: choose by --where {keys[0]}=..., "
        "or name the key in --rows or --columns"
    )


def _values(runs: pd.DataFrame, key: str) -> list[str]:
    column = runs.get(f"config.{key}", runs.get(key, pd.Series(dtype=object)))
    return sorted({value_text(value) for value in column})


def _ordered(keys: Any) -> list[Key]:
    return sorted(dict.fromkeys(keys), key=lambda key: [*map(rank, key)])
