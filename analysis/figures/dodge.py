"""Points that coincide lie beside each other."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.transforms import ScaledTranslation

_STEP_PT: Final = 4.5
_NEAR: Final = 0.04
"""Means that differ by this share of the range of an axis have markers that overlap."""


def slots(lines: Sequence[pd.DataFrame], *, near_x: float = 0.0) -> list[int]:
    """Return for each line by how many steps to move it, so that none has a point where another one has one.

    ``lines``: their ``x``, ``mean`` and ``std``. ``near_x``: values of x that differ by this share count as equal.
    """
    taken: list[int] = []
    near = _NEAR * _range(lines)
    for number, line in enumerate(lines):
        occupied = {taken[other] for other in range(number) if _coincide(line, lines[other], near, near_x)}
        taken.append(next(slot for slot in _outwards() if slot not in occupied))
    return taken


def points_beside(ax: Axes, line: pd.DataFrame, slot: int, **drawing: Any) -> ErrorbarContainer:
    """Draw markers, with a bar of one standard deviation where there is one, moved by some steps."""
    bars = ax.errorbar(line["x"], line["mean"], yerr=line["std"].fillna(0), elinewidth=1.0, capsize=1.8, **drawing)
    move(ax, bars.get_children(), slot)
    return bars


def move(ax: Axes, artists: Sequence[Artist], slot: int) -> None:
    """Move what was drawn to the right, on the page only: the limits of the axes stay those of the data."""
    moved = ax.transData + ScaledTranslation(slot * _STEP_PT / 72, 0, ax.figure.dpi_scale_trans)
    for artist in artists:
        artist.set_transform(moved)


def _range(lines: Sequence[pd.DataFrame]) -> float:
    lows = [(line["mean"] - line["std"].fillna(0)).min() for line in lines]
    highs = [(line["mean"] + line["std"].fillna(0)).max() for line in lines]
    return max(highs, default=0.0) - min(lows, default=0.0) or 1.0


def _outwards() -> Iterator[int]:
    """Yield 0, 1, -1, 2, -2, ..."""
    yield (number := 0)
    while True:
        number += 1
        yield from (number, -number)


def _coincide(one: pd.DataFrame, other: pd.DataFrame, near: float, near_x: float) -> bool:
    x, means = one["x"].to_numpy(float)[:, None], one["mean"].to_numpy(float)[:, None]
    same_x = np.isclose(other["x"].to_numpy(float), x, rtol=near_x, atol=0)
    return bool((same_x & (np.abs(other["mean"].to_numpy(float) - means) <= near)).any())
