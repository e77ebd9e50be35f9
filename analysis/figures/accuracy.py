"""Test accuracy over density, over the cost of training, and over its length."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.axes import density_axis, plain_log_ticks, spans_decade
from analysis.figures.dodge import move, points_beside, slots
from analysis.figures.panels import Drawn, Sheet, band
from analysis.figures.series import DENSITIES, Series, experiments, series_of
from analysis.figures.style import Style
from analysis.runs import ACCURACY, is_done

DENSITY: Final = "sparsity/density"
RATIO: Final = "flops/train_ratio"
MULTIPLIER: Final = "config.schedule.multiplier"
Points = pd.DataFrame  # x, mean, std, n: one row an experiment, by x


def over_density(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the accuracy of each method over the realised density; a dense network is a level to compare with."""
    lines = _with_points(_done(frame), DENSITIES, DENSITY)
    sparse = {line.panel for line, points in lines if not _is_level(points)}
    lines = [(line, points) for line, points in lines if line.panel in sparse]
    if not lines:
        return None
    return _draw(lines, style, "density", _axis_of_densities, level=_is_level)


def over_flops(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the accuracy of each method over its training FLOPs relative to dense training."""
    lines = _with_points(_done(frame), DENSITIES, RATIO)
    if not lines:
        return None
    return _draw(lines, style, "training FLOPs (ratio to dense training)", _axis_of_ratios)


def over_multiplier(frame: pd.DataFrame, style: Style) -> Drawn | None:
    """Draw the accuracy of each method over how much longer it is trained."""
    found = _with_points(_done(frame), ("schedule.multiplier",), MULTIPLIER)
    longer = [(line, points) for line, points in found if len(points) > 1]
    if not longer:
        return None
    panels = {line.panel for line, _ in longer}
    levels = [(line, points) for line, points in found if len(points) == 1 and _is_dense(line) and line.panel in panels]
    return _draw([*longer, *levels], style, "length of training", _axis_of_multiples, lambda points: len(points) == 1)


def _done(frame: pd.DataFrame) -> pd.DataFrame:
    if ACCURACY not in frame:
        return frame.head(0)
    return frame[is_done(frame)]


def _with_points(frame: pd.DataFrame, along: Sequence[str], column: str) -> list[tuple[Series, Points]]:
    if column not in frame:
        return []
    pairs = [(line, _points(line.runs, column)) for line in series_of(frame, along=along)]
    return [(line, points) for line, points in pairs if len(points)]


def _points(runs: pd.DataFrame, column: str) -> Points:
    rows = [_point(members, column) for members in experiments(runs)]
    return pd.DataFrame(rows, columns=["x", "mean", "std", "n"]).dropna(subset=["x", "mean"]).sort_values("x")


def _point(runs: pd.DataFrame, column: str) -> tuple[float, float, float, int]:
    accuracy = 100 * runs[ACCURACY].astype(float)
    return runs[column].astype(float).mean(), accuracy.mean(), accuracy.std(ddof=1), len(accuracy)


def _is_dense(line: Series) -> bool:
    return DENSITY in line.runs and bool((line.runs[DENSITY] == 1).all())


def _is_level(points: Points) -> bool:
    """Return whether this is a dense network: it has no place among densities."""
    return len(points) == 1 and bool(points["x"].iloc[0] == 1)


def _draw(
    lines: Sequence[tuple[Series, Points]], style: Style, xlabel: str, fit: Callable[[Axes, list[float]], None],
    level: Callable[[Points], bool] = lambda points: False,
) -> Drawn:  # fmt: skip
    sheet, found = Sheet([line for line, _ in lines], style), {line.identity: points for line, points in lines}
    for (place, _), ax in sheet.panels.items():
        mine = [(line, found[line.identity]) for line in sheet.of(place)]
        along = [(line, points) for line, points in mine if not level(points)]
        for line, points in mine:
            if level(points):
                _draw_level(ax, points, sheet.drawing(line))
        for (line, points), slot in zip(along, slots([points for _, points in along], near_x=0.03), strict=True):
            _draw_points(ax, points, sheet.drawing(line), slot)
        fit(ax, [x for _, points in along for x in points["x"]])
        ax.set(xlabel=xlabel, ylabel="test accuracy (%)")
    return sheet.finish()


def _draw_level(ax: Axes, points: Points, drawing: dict[str, Any]) -> None:
    mean, std = points["mean"].iloc[0], points["std"].iloc[0]
    ax.axhline(mean, color=drawing["color"], linestyle=drawing["linestyle"], linewidth=1.1, alpha=drawing["alpha"])
    if np.isfinite(std):
        ax.axhspan(mean - std, mean + std, color=drawing["color"], alpha=0.1, linewidth=0)


def _draw_points(ax: Axes, points: Points, drawing: dict[str, Any], slot: int) -> None:
    """Draw a line with a band, or a single point with a bar; both show one standard deviation."""
    is_line = len(points) > 1
    if is_line:
        move(ax, band(ax, points["x"], points["mean"], points["std"], drawing), slot)
    shown = points.assign(std=np.nan) if is_line else points
    points_beside(ax, shown, slot, **{**drawing, "linestyle": ""})


def _axis_of_densities(ax: Axes, values: list[float]) -> None:
    if values:
        density_axis(ax, values)


def _axis_of_ratios(ax: Axes, values: list[float]) -> None:
    low, high = min(values), max(values)
    if spans_decade(low, high):
        ax.set_xscale("log")
        plain_log_ticks(ax.xaxis, low, high)


def _axis_of_multiples(ax: Axes, values: list[float]) -> None:
    ax.set_xticks(sorted(set(values)), [f"{value:g}x" for value in sorted(set(values))])
