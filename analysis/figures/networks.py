"""The networks that a procedure makes on the way: tickets and their averages, levels of pruning or annealing."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.axes import density_axis
from analysis.figures.dodge import points_beside, slots
from analysis.figures.panels import FILLS, Drawn, Sheet
from analysis.figures.readings import Rows, over_seeds, read
from analysis.figures.series import Series, series_of
from analysis.figures.style import Style
from dst.records.read import read_networks

_ACCURACY: Final = "val/accuracy"
_PARTS: Final = ("over steps", "over density")

Kinds = Mapping[str, pd.DataFrame]
"""Kind of a network (``ticket``) -> mean and deviation of its accuracy, by step; and its mean density."""


def on_the_way(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the accuracy of networks over the step and, where they differ in it, over the density they have."""
    rows, left_out = read(frame, read_networks)
    pairs = [(line, _kinds(line, rows)) for line in series_of(frame)]
    lines = [(line, kinds) for line, kinds in pairs if kinds]
    if not lines:
        return None
    has_levels = any(_span(kinds) > 1.1 for _, kinds in lines)
    sheet = Sheet([line for line, _ in lines], style, parts=_PARTS if has_levels else ("",))
    for (place, part), ax in sheet.panels.items():
        mine = [(line, kinds) for line, kinds in lines if line.panel == place]
        _draw(ax, sheet, mine, by_density=part == _PARTS[1])
    return sheet.finish(left_out=left_out)


def _kinds(line: Series, rows: Mapping[str, Rows]) -> dict[str, pd.DataFrame]:
    names = {_kind(row) for folder in line.runs["folder"] for row in rows.get(folder, []) if _ACCURACY in row}
    return {kind: _table(line, rows, kind) for kind in sorted(names)}


def _table(line: Series, rows: Mapping[str, Rows], kind: str) -> pd.DataFrame:
    own = {folder: [row for row in found if _kind(row) == kind] for folder, found in rows.items()}
    table = 100 * over_seeds(line.runs, {folder: _by_step(found, _ACCURACY) for folder, found in own.items()})
    densities = over_seeds(line.runs, {folder: _by_step(found, "density") for folder, found in own.items()})
    return table.assign(density=densities["mean"]).sort_index()


def _by_step(rows: Rows, value: str) -> dict[int, float]:
    return {row["step"]: row[value] for row in rows if row.get(value) is not None and row.get(_ACCURACY) is not None}


def _kind(row: Mapping[str, Any]) -> str:
    """Return what a network is, without its number: ``ticket 3`` -> ``ticket``."""
    return re.sub(r"\s*\d+$", "", str(row["name"]))


def _span(kinds: Kinds) -> float:
    densities = pd.concat([table["density"] for table in kinds.values()])
    return float(densities.max() / densities.min()) if densities.min() > 0 else 1.0


def _draw(ax: Axes, sheet: Sheet, lines: Sequence[tuple[Series, Kinds]], *, by_density: bool) -> None:
    fills = dict(zip(dict.fromkeys(kind for _, kinds in lines for kind in kinds), FILLS, strict=False))
    each = [(line, kind, table) for line, kinds in lines for kind, table in kinds.items()]
    tables = [table.assign(x=table["density"] if by_density else table.index) for *_, table in each]
    for (line, kind, _), table, slot in zip(each, tables, slots(tables), strict=True):
        fill = fills.get(kind, FILLS[-1])
        points_beside(ax, table, slot, **{**sheet.drawing(line), "fillstyle": fill})
        sheet.explain(kind, fill)
    ax.set(xlabel="density" if by_density else "step", ylabel="validation accuracy (%)")
    if by_density:
        density_axis(ax, [value for _, kinds in lines for table in kinds.values() for value in table["density"]])
