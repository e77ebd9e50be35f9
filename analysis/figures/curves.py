"""What changes while training: validation accuracy, and how many weights have been explored."""

from collections.abc import Sequence
from typing import Final

import pandas as pd

from analysis.figures.panels import Drawn, Sheet, band
from analysis.figures.readings import finite, over_seeds, read, thinned
from analysis.figures.series import Series, series_of, split
from analysis.figures.style import Style
from dst.records.read import read_metrics

ACCURACY: Final = "val/accuracy"
RS: Final = "sparsity/rs"
_WARM_UP: Final = 0.2
"""The share of training whose values do not decide where the axis begins: the first rise would hide the rest."""


def learning(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the validation accuracy over the steps."""
    lines, left_out = _lines(frame, ACCURACY, 100)
    if not lines:
        return None
    lines = [(line, thinned(table)) for line, table in lines]
    sheet = _draw(lines, style, "validation accuracy (%)", stairs=False)
    for (place, _), ax in sheet.panels.items():
        low, high = _limits([table for line, table in lines if line.panel == place])
        if low < high:
            ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    return sheet.finish(left_out=left_out)


def rs(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the share of weights explored so far as stairs: it changes at an update of the masks only."""
    lines, left_out = _lines(frame, RS, 1)
    lines = [(line, thinned(_steps(table))) for line, table in lines if (table["mean"] < 1).any()]
    if not lines:
        return None
    return _draw(lines, style, "Rs (share of weights explored)", stairs=True).finish(left_out=left_out)


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at which stairs go up, and the last one."""
    goes_up = table["mean"].diff().ne(0)
    goes_up.iloc[-1] = True
    return table[goes_up]


def _lines(frame: pd.DataFrame, value: str, scale: float) -> tuple[list[tuple[Series, pd.DataFrame]], list[str]]:
    rows, left_out = read(frame, read_metrics)
    columns = {folder: finite(lines, "step", value) for folder, lines in rows.items()}
    pairs = [(line, scale * over_seeds(line.runs, columns).sort_index()) for line in split(series_of(frame))]
    return [(line, table) for line, table in pairs if len(table)], left_out


def _draw(lines: Sequence[tuple[Series, pd.DataFrame]], style: Style, label: str, *, stairs: bool) -> Sheet:
    sheet = Sheet([line for line, _ in lines], style)
    for line, table in lines:
        ax = sheet.panels[line.panel, ""]
        band(ax, table.index, table["mean"], table["std"], sheet.drawing(line), stairs=stairs, markers=True)
    for ax in sheet.panels.values():
        ax.set(xlabel="step", ylabel=label)
        ax.set_xlim(left=0)
    return sheet


def _limits(tables: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Return the lowest and the highest value of lines once they have begun to rise."""
    risen = [table[table.index >= _WARM_UP * table.index.max()] for table in tables]
    spread = [table["std"].fillna(0) for table in risen]
    lows = [(table["mean"] - std).min() for table, std in zip(risen, spread, strict=True)]
    highs = [(table["mean"] + std).max() for table, std in zip(risen, spread, strict=True)]
    return min(lows), max(highs)
