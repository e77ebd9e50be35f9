"""Layer by layer: density at the end, and how many weights were dropped and grown in all of training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.axes import plain_log_ticks, spans_decade
from analysis.figures.dodge import points_beside, slots
from analysis.figures.panels import Drawn, Sheet
from analysis.figures.readings import Rows, over_seeds, read
from analysis.figures.series import Series, series_of, split
from analysis.figures.style import Style
from dst.records.read import read_layers

_MOST_NAMES: Final = 24
"""Layers whose names fit below a panel; of more, every so many has one."""

Lines = Sequence[tuple[Series, pd.DataFrame]]


def density(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the density of each layer at the end."""
    rows, left_out = read(frame, read_layers)
    lines = _lines(frame, {folder: _density(found) for folder, found in rows.items()})
    lines = [(line, table) for line, table in lines if (table["mean"] < 1).any()]
    if not lines:
        return None
    sheet = Sheet([line for line, _ in lines], style)
    for (place, _), ax in sheet.panels.items():
        mine = [(line, table) for line, table in lines if line.panel == place]
        _draw(ax, sheet, mine, "density")
        lowest, highest = (pick([table["mean"].agg(pick) for _, table in mine]) for pick in (min, max))
        if spans_decade(lowest, highest):
            ax.set_yscale("log")
            ax.set_ylim(lowest / 1.3, highest * 1.3)
            plain_log_ticks(ax.yaxis, lowest, highest)
    return sheet.finish(left_out=left_out)


def exchange(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw how many weights of each layer were grown, and dropped, per active weight of the layer."""
    rows, left_out = read(frame, read_layers)
    parts = {
        part: _lines(frame, {folder: _per_active(found, part) for folder, found in rows.items()})
        for part in ("grown", "dropped")
    }
    moving = {line.identity for lines in parts.values() for line, table in lines if (table["mean"] > 0).any()}
    if not moving:
        return None
    parts = {part: [pair for pair in lines if pair[0].identity in moving] for part, lines in parts.items()}
    if _are_equal(parts["grown"], parts["dropped"]):  # as most methods do, which keep the number of weights of a layer
        parts = {"dropped and grown": parts["grown"]}
    sheet = Sheet([line for line, _ in next(iter(parts.values()))], style, parts=[*parts])
    for (place, part), ax in sheet.panels.items():
        _draw(ax, sheet, [pair for pair in parts[part] if pair[0].panel == place], "per active weight")
    return sheet.finish(left_out=left_out)


def _are_equal(one: Lines, other: Lines) -> bool:
    return all(np.array_equal(left["mean"], right["mean"]) for (_, left), (_, right) in zip(one, other, strict=True))


def _density(rows: Rows) -> dict[str, float]:
    return {row["layer"]: row["active"] / row["size"] for row in rows if _counts(row, "active")}


def _per_active(rows: Rows, part: str) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for row in rows:
        if _counts(row, part):
            totals[row["layer"]] += row[part] / max(row["active"], 1)
    return totals


def _counts(row: Mapping[str, Any], part: str) -> bool:
    counts = [row.get(name) for name in (part, "active", "size")]
    return all(isinstance(count, int) for count in counts) and row["size"] > 0


def _lines(frame: pd.DataFrame, columns: Mapping[str, Mapping[str, float]]) -> Lines:
    pairs = [(line, over_seeds(line.runs, columns)) for line in split(series_of(frame))]
    return [(line, table) for line, table in pairs if len(table)]


def _draw(ax: Axes, sheet: Sheet, lines: Lines, label: str) -> None:
    names = list(dict.fromkeys(name for _, table in lines for name in table.index))
    tables = [table.assign(x=[names.index(name) for name in table.index]) for _, table in lines]
    for (line, _), table, slot in zip(lines, tables, slots(tables), strict=True):
        points_beside(ax, table, slot, **sheet.drawing(line))
    every = -(-len(names) // _MOST_NAMES)
    is_long = len(names) > 6 or max(map(len, names)) > 8
    ax.set_xticks(
        range(0, len(names), every), names[::every], rotation=60 if is_long else 0, ha="right" if is_long else "center"
    )
    ax.set(ylabel=label)
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_ylim(bottom=0)
