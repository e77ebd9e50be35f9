"""What a figure shows, read from what was drawn."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from analysis.figures.series import series_of


def lines_of(frame: Any) -> list[tuple[str, str]]:
    """Return method and setting of each line over densities."""
    return [(line.method, line.words) for line in series_of(frame, along=("density", "target"))]


def points(ax: Axes) -> list[tuple[str, list[list[float]], list[float]]]:
    """Return of each line with points: its colour, the points, and the heights of their bars."""
    found = []
    for container in ax.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, bars = container.lines
        segments = bars[0].get_segments() if bars else []
        heights = [round(float(segment[1][1] - segment[0][1]), 4) if len(segment) else 0.0 for segment in segments]
        found.append((line.get_color(), line.get_xydata().round(6).tolist(), heights))
    return found


def legend(figure: Any) -> list[str]:
    """Return the words of the legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]
