"""The tables of ``analysis.tables`` as LaTeX: which columns each has in an article, and what is bold or marked."""

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from analysis.contrasts import Contrast, blocks
from analysis.latex import MINUS, NOT_TESTED, NOT_TOLD, Column, document, escaped, methods, numbers, spreads, words
from analysis.pivot import Cell, Pivot, named
from analysis.rows import Row
from analysis.statistics import LEAST, Difference
from analysis.text import NOTHING, cell_text, counted
from dst.records.label import WRAPPERS

_FIGURES: Final = {
    "rs": r"$R_s$",
    "flops_test_ratio": r"\shortstack{Test\\FLOPs}",
    "flops_train_ratio": r"\shortstack{Train\\FLOPs}",
}
_PLACE: Final = ("data", "model")


def results(rows: Sequence[Row], figures: pd.DataFrame, contrasts: Sequence[Contrast], notes: Sequence[str]) -> str:
    """Return the table of experiments: one for each data set and model, below each other."""
    marks = _marks(len(rows), contrasts)
    bold = _best(blocks(rows), [*figures["accuracy"]])
    places: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        places.setdefault(", ".join(cell_text(row.shown[name]) for name in _PLACE), []).append(number)
    parts = [
        (_title(place, rows, members), _columns(rows, figures, marks, bold, members))
        for place, members in places.items()
    ]
    return document(parts, _legend(contrasts, "density"), notes)


def pivoted(pivot: Pivot, notes: Sequence[str]) -> str:
    """Return a value by two keys: a column of the article's table for each value of the column keys."""
    marks = dict(zip(map(id, pivot.cells), _marks(len(pivot.cells), pivot.contrasts), strict=True))
    columns = [_key(pivot, place) for place in range(len(pivot.row_keys))]
    for column in pivot.columns:
        cells = {cell.row: cell for cell in pivot.cells if cell.column == column}
        columns += _pivot_column(pivot, column, [cells.get(row) for row in pivot.rows], marks)
    return document(
        [(f"{pivot.value} by {', '.join(pivot.column_keys)}", columns)], _legend(pivot.contrasts, "column"), notes
    )


def plain(table: pd.DataFrame, notes: Sequence[str]) -> str:
    """Return any table of texts."""
    columns = [_column(str(name), [*table[name]]) for name in table.columns]
    return document([("", columns)] if len(table) else [], [], notes)


def compared(table: pd.DataFrame, differences: Sequence[Difference], notes: Sequence[str], spec: str) -> str:
    """Return two sweeps side by side, by their ``table`` of texts, which ends with A, B and their difference."""
    parts = []
    for place, members in table.groupby([*_PLACE], sort=False) if len(table) else ():
        labels = [str(name) for name in table.columns[:-3] if name not in _PLACE]
        sides = [each for name in ("A", "B") for each in _side(name, [*members[name]])]
        found = [differences[number] for number in members.index]
        values = [cell_text(one.mean, spec) for one in found]
        bounds = [NOTHING if one.low is None else _signed(f"[{one.low:{spec}}, {one.high:{spec}}]") for one in found]
        marks = [{True: "", False: NOT_TOLD, None: NOT_TESTED}[one.told] for one in found]
        own = [numbers("$B-A$", values), spreads([], marks), words("95 % interval", bounds)]
        columns = [*(_column(name, [*members[name]]) for name in labels), *sides, *own]
        parts.append((", ".join(map(str, place)), columns))
    return document(parts, _marks_told([one.told for one in differences], _tested(differences)), notes)


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _side(name: str, cells: Sequence[str]) -> list[Column]:
    parts = [cell.partition(" ± ") for cell in cells]
    return [numbers(name, [mean for mean, _, _ in parts]), spreads([std for _, _, std in parts])]


def _title(place: str, rows: Sequence[Row], members: Sequence[int]) -> str:
    """Return what all rows of a table share, but for what wraps no method."""
    shared = _shared([rows[number] for number in members]).items()
    return ", ".join([place, *(f"{name} {text}" for name, text in shared if WRAPPERS.get(name) != text)])


def _shared(rows: Sequence[Row]) -> dict[str, str]:
    """Return the labels behind the density that have one value in all rows, as text."""
    names = [name for name in rows[0].shown if name not in (*_PLACE, "method", "density")]
    values = {name: {cell_text(row.shown[name]) for row in rows} for name in names}
    return {name: one for name, (one, *others) in values.items() if not others}


def _columns(
    rows: Sequence[Row], figures: pd.DataFrame, marks: Sequence[str], bold: Sequence[bool], members: Sequence[int]
) -> list[Column]:
    own = [rows[number] for number in members]
    part = figures.iloc[[*members]]
    names = [name for name in own[0].shown if name not in (*_PLACE, "method", *_shared(own))]
    labels = [_column(name, [cell_text(row.shown[name]) for row in own]) for name in names]
    means = ["—" if pd.isna(value) else f"{value:.2f}" for value in part["accuracy"]]
    return [
        methods("Method", [cell_text(row.shown["method"]) for row in own]),
        *labels,
        numbers(r"Accuracy (\%)", means, [bold[number] for number in members]),
        spreads([cell_text(value, ".2f") for value in part["accuracy_std"]], [marks[number] for number in members]),
        *(numbers(head, [cell_text(value, ".3g") for value in part[name]]) for name, head in _FIGURES.items()),
        words("n", [counted(n, expected) for n, expected in zip(part["n"], part["expected"], strict=True)]),
    ]


def _column(name: str, cells: Sequence[str]) -> Column:
    """Return a column of texts, aligned as numbers if they are."""
    if name == "method":
        return methods("Method", cells)
    heading = name[:1].upper() + name[1:]
    is_number = all(cell == NOTHING or cell.replace(".", "", 1).isdigit() for cell in cells)
    return numbers(escaped(heading), cells) if is_number else words(heading, cells)


def _key(pivot: Pivot, place: int) -> Column:
    return _column(pivot.row_keys[place], [cell_text(row[place]) for row in pivot.rows])


def _pivot_column(
    pivot: Pivot, key: Sequence[Any], cells: Sequence[Cell | None], marks: dict[int, str]
) -> list[Column]:
    parts = [pivot.parts(cell) if cell else (NOTHING, NOTHING) for cell in cells]
    values = [cell.value if cell and pivot.is_accuracy else float("nan") for cell in cells]
    heading = escaped(named(pivot.column_keys, key) if len(pivot.column_keys) > 1 else cell_text(key[0]))
    means = numbers(heading, [mean for mean, _ in parts], _best([[*range(len(cells))]], values))
    signs = [marks[id(cell)] if cell else "" for cell in cells]
    return [means, spreads([std for _, std in parts], signs)]


def _marks(size: int, contrasts: Sequence[Contrast]) -> list[str]:
    marks = [""] * size
    for one in contrasts:
        marks[one.row] = {True: "", False: NOT_TOLD, None: NOT_TESTED}[one.difference.told]
    return marks


def _best(blocks: Sequence[Sequence[int]], values: Sequence[float]) -> list[bool]:
    """Return of each place whether it shows the best value of its block; nothing is best alone."""
    best = [False] * len(values)
    for block in blocks:
        there = [place for place in block if not pd.isna(values[place])]
        for place in there if len(there) > 1 else []:
            best[place] = f"{values[place]:.2f}" == f"{max(values[other] for other in there):.2f}"
    return best


def _legend(contrasts: Sequence[Contrast], of: str) -> list[str]:
    """Return what bold and the marks mean, of those that occur."""
    found = [one.difference for one in contrasts]
    marks = _marks_told([one.told for one in found], _tested(found))
    return [" ".join([f"Bold: best of its {of}.", *marks])] if found else []


def _tested(differences: Sequence[Difference]) -> int:
    return sum(one.p is not None for one in differences)


def _marks_told(told: Sequence[bool | None], tested: int) -> list[str]:
    notes = []
    if False in told:
        notes.append(rf"${NOT_TOLD}$\,not told apart (95\,\%, $t$-test over $n$ seeds, Holm over {tested}).")
    if None in told:
        notes.append(rf"${NOT_TESTED}$\,not tested: $n<{LEAST}$, or no spread over the seeds.")
    return notes
