"""Tables of results as numbers, text and LaTeX, with what is missing and what is told apart; functions of a catalog."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from analysis import contrasts, latex_tables
from analysis.beside import published_beside, published_columns, published_lines
from analysis.pivot import pivot
from analysis.results import (
    CHOSEN_BY,
    NETWORK_VALUES,
    VALUES,
    figures_of,
    missing_networks_of,
    missing_of,
    network_figures_of,
    network_rows,
)
from analysis.rows import Row, left_out, rows
from analysis.runs import ACCURACY
from analysis.text import NOTHING, aligned, cell_text, counted

_HEADINGS: Final = {
    "realised_density": "realised density",
    "rs": "Rs",
    "flops_test_ratio": "test FLOPs / dense",
    "flops_train_ratio": "train FLOPs / dense",
}


_NAMES: Final = {"mean": "", "median": "median ", "best_val": "best-val "}
"""What stands before the heading of the accuracy."""


@dataclass(frozen=True)
class Table:
    """A table to show: its cells as numbers (for a CSV) and as text, row by row, and as LaTeX.

    ``differences``: lines about which rows are told apart; ``footnotes``: what is missing and why.
    """

    numbers: pd.DataFrame
    text: pd.DataFrame
    latex: str
    footnotes: list[str]
    differences: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the table as lines to print: the cells, then what is told apart, then the footnotes."""
        parts = [aligned(self.text), self.differences, self.footnotes]
        return [line for part in parts if part for line in ("", *part)][1:]


def accuracy_table(frame: pd.DataFrame, summary: str = "mean") -> pd.DataFrame:
    """Return ``accuracy_figures`` as text to read, with ``n`` as "2/3" where seeds are missing.

    A value that does not exist, like the deviation of one run, is a dash. ``missing_cells`` are its footnotes. A key
    that only tells sweeps apart is no column: it stands behind the method (see ``sweeps.folded``).
    """
    found = rows(frame)
    return _accuracy_text(found, figures_of(found, summary), summary)


def network_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``network_figures`` as text to read, like ``accuracy_table``; ``missing_networks`` are its footnotes."""
    found = [*network_rows(frame)]
    return _network_text(found, network_figures_of(frame, found))


def _network_text(found: Sequence[tuple[Row, dict[str, Any]]], figures: pd.DataFrame) -> pd.DataFrame:
    table = _labels([row.shown for row, _ in found], figures, NETWORK_VALUES)
    table["phase"], table["network"] = figures["phase_name"].map(cell_text), figures["network"].map(cell_text)
    table["step"] = figures["step"].map(cell_text)
    table["val accuracy (%)"] = _accuracies(figures)
    table["realised density"] = figures["realised_density"].map(lambda value: cell_text(value, ".4g"))
    table["n"] = _counts(figures)
    return table


def results(frame: pd.DataFrame, summary: str = "mean") -> Table:
    """Return the table of experiments; means over seeds are compared to the best of equal data, model and density."""
    found = rows(frame)
    figures = figures_of(found, summary)
    is_tested = summary == "mean"
    compared = contrasts.to_best([*map(contrasts.accuracies, found)], contrasts.blocks(found)) if is_tested else []
    footnotes = [*_unchosen(found, summary), *missing_of(found), *left_out(frame)]
    tex = latex_tables.results(found, figures, compared, footnotes)
    text = _accuracy_text(found, figures, summary)
    beside = published_beside(found) if is_tested else {}
    numbers = _with_contrasts(figures, compared).join(published_columns(len(found), beside))
    told = [*contrasts.lines(found, compared), *published_lines(found, beside)]
    return Table(numbers, text, tex, footnotes, told)


def networks(frame: pd.DataFrame) -> Table:
    """Return the table of the networks that runs make on the way."""
    found = [*network_rows(frame)]  # which reads a file of each run
    figures, footnotes = network_figures_of(frame, found), missing_networks_of(frame, found)
    text = _network_text(found, figures)
    return Table(figures, text, latex_tables.plain(text, footnotes), footnotes)


def pivoted(
    frame: pd.DataFrame, row_keys: Sequence[str], column_keys: Sequence[str], value: str, summary: str = "mean"
) -> Table:
    """Return a table of one value by two keys; accuracies are compared to the best of their column."""
    found = pivot(frame, row_keys, column_keys, value, summary)
    footnotes = [*found.notes(), *left_out(frame)]
    compared = contrasts.told(found.places(), found.contrasts)
    return Table(found.numbers(), found.text(), latex_tables.pivoted(found, footnotes), footnotes, compared)


def _accuracy_text(found: Sequence[Row], figures: pd.DataFrame, summary: str) -> pd.DataFrame:
    table = _labels([row.shown for row in found], figures, VALUES)
    table[f"{_NAMES[summary]}test accuracy (%)"] = _accuracies(figures)
    for name, heading in _HEADINGS.items():
        table[heading] = figures[name].map(lambda value: cell_text(value, ".4g"))
    table["n"] = _counts(figures)
    return table


def _labels(shown: Sequence[dict[str, Any]], figures: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Return the labels of rows as text; their columns where there is no row."""
    if not shown:
        return figures.drop(columns=list(values)).map(cell_text)
    return pd.DataFrame(shown, index=figures.index, dtype=object).map(cell_text)


def _with_contrasts(figures: pd.DataFrame, compared: Sequence[contrasts.Contrast]) -> pd.DataFrame:
    """Return figures with the columns of a CSV that say how each row differs from the best, if any was compared."""
    if not compared:
        return figures
    by_row = {one.row: one.difference for one in compared}
    told = [contrasts.difference_numbers(by_row.get(place), "to_best") for place in range(len(figures))]
    return pd.concat([figures, pd.DataFrame(told, index=figures.index)], axis="columns")


def _unchosen(found: Sequence[Row], summary: str) -> list[str]:
    """Say where ``best_val`` has nothing to choose by."""
    if summary != "best_val":
        return []
    without = [row.name for row in found if row.by_seed(ACCURACY) and not row.by_seed(CHOSEN_BY)]
    return [f"no figure for {name}: its records have no {CHOSEN_BY}, by which best_val chooses" for name in without]


def _accuracies(figures: pd.DataFrame) -> list[str]:
    """Return mean and deviation of each row as text; a dash where there is none."""
    pairs = zip(figures["accuracy"], figures["accuracy_std"], strict=True)
    return [NOTHING if pd.isna(mean) else f"{mean:.2f} ± {cell_text(std, '.2f')}" for mean, std in pairs]


def _counts(figures: pd.DataFrame) -> list[str]:
    """Return of each row how many seeds it has."""
    return [counted(n, expected) for n, expected in zip(figures["n"], figures["expected"], strict=True)]
