"""Axes that fit the data: logarithmic where it spans decades, with ticks that have room."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator


def density_axis(ax: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, with a tick at each density that has room for one."""
    ax.set_xscale("log")
    low, high = min(values), max(values)
    if low == high:
        ax.set_xlim(low / 1.6, high * 1.6)
    ticks = spread(sorted(set(values), reverse=True), np.log(high / low) if high > low else 1.0)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def spread(values: Sequence[float], span: float) -> list[float]:
    """Return those of some falling values that are far enough apart on a logarithmic axis for their labels."""
    kept = [values[0]]
    for _, value in pairwise(values):
        if np.log(kept[-1] / value) > 0.11 * span:
            kept.append(value)
    return kept


def plain_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Give a logarithmic axis ticks at 1, 2 and 5 times powers of ten, or at these alone, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spans_decade(low: float, high: float) -> bool:
    """Return whether values are shown on a logarithmic axis."""
    return high > 10 * low > 0
