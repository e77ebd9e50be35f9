"""The frame of a figure: one panel a data set and model, axes that fit the data, and one legend below all of them."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.series import Series, Setting, in_order, shared, words
from analysis.figures.style import Style
from analysis.text import printable

LINES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))
FILLS: Final[tuple[Any, ...]] = ("full", "none", "left", "top")
_FAINTEST: Final = 0.55
_WIDEST: Final = 36  # characters of a line in the legend
_MARKERS: Final = 6  # of a line without points of its own: colours repeat after twelve methods
_NARROW_IN: Final = 4.0
"""A figure that is narrower is a column of a paper: its panels stand one below the other."""


class Drawn(Figure):
    """A figure that keeps the settings it was drawn with, since matplotlib asks for them again when it is written."""

    rc: Any
    name = ""
    left_out: Sequence[str] = ()
    """A note for each run whose files are damaged."""

    def _repr_svg_(self) -> str:
        """Return what a notebook shows."""
        from analysis.figures.write import svg

        return svg(self)


class Sheet:
    """A figure in the making: its panels by title, and how each line is drawn."""

    def __init__(self, lines: Sequence[Series], style: Style, *, parts: Sequence[str] = ("",)) -> None:
        """``parts``: titles of the panels that each data set and model has beside each other."""
        self.style, self.lines = style, lines
        places = sorted({line.panel for line in lines})
        with_parts = [(place, part) for place in places for part in parts]
        self.figure, axes = _figure(len(with_parts), style, len(parts))
        self.panels = dict(zip(with_parts, axes, strict=True))
        self._settings = [
            setting for setting in in_order(line.setting for line in self.lines) if setting or self._has_default()
        ]
        self._kinds: dict[str, Any] = {}
        self._shared = () if self._has_default() else shared(lines)
        for (place, part), ax in self.panels.items():
            told = ", ".join(text for text in (part, place, words(self._shared)) if text)
            ax.set_title(_fitting(printable(told), self.figure, ax))

    def of(self, place: str) -> list[Series]:
        """Return the lines of a data set and model."""
        return [line for line in self.lines if line.panel == place]

    def drawing(self, line: Series) -> dict[str, Any]:
        """Return colour, marker, and what tells settings apart: kind of line, filling of markers, and strength."""
        look = self.style.look(line.method)
        rank = self._settings.index(line.setting) if line.setting in self._settings else 0
        return {"color": look.colour, "marker": look.marker, **_variant(rank, len(self._settings))}

    def explain(self, kind: str, fillstyle: Any) -> None:
        """Have the legend say what markers that are filled so stand for."""
        self._kinds[kind] = fillstyle

    def finish(self, *, left_out: Sequence[str] = ()) -> Drawn:
        """Add the legend and return the figure. ``left_out``: notes about runs that could not be read."""
        for ax in self.panels.values():  # what an axis shows is said once a row
            place = ax.get_subplotspec()
            if place is not None and not place.is_first_col():
                ax.set_ylabel("")
        ink = self.style.colours.ink
        kinds = [
            Line2D([], [], color=ink, linestyle="", marker="o", fillstyle=fill, label=kind)
            for kind, fill in self._kinds.items()
        ]
        _legend(self.figure, self._methods() + self._variants() + kinds)
        self.figure.left_out = left_out
        return self.figure

    def _methods(self) -> list[Line2D]:
        looks = {look.place: look for look in (self.style.look(line.method) for line in self.lines)}
        return [
            Line2D([], [], color=look.colour, marker=look.marker, label=_label(look.name)) for look in looks.values()
        ]

    def _variants(self) -> list[Line2D]:
        """Return what the kinds of lines mean, where there are several of one method or of different methods."""
        if len(self._settings) < 2:
            return []
        ink, count = self.style.colours.ink, len(self._settings)
        return [
            Line2D([], [], color=ink, marker="o", label=self._told(setting),
                   **_variant(self._settings.index(setting), count))
            for setting in self._settings
        ]  # fmt: skip

    def _told(self, setting: Setting) -> str:
        """Return what the legend says of a setting: what it does not share with all others."""
        own = tuple(part for part in setting if part not in self._shared)
        return textwrap.fill(_label(words(own)), _WIDEST) or "default"

    def _has_default(self) -> bool:
        """Return whether a method is there both with settings and without."""
        plain = {line.method for line in self.lines if not line.setting}
        return any(line.setting and line.method in plain for line in self.lines)


def _label(text: str) -> str:
    """Return a text for the legend, from which matplotlib would leave out what begins with an underscore."""
    return printable(f"\u200b{text}" if text.startswith("_") else text)


def _fitting(title: str, figure: Figure, ax: Axes) -> str:
    """Return a title in as many lines as the width of its panel needs."""
    place = ax.get_subplotspec()
    panel_in = figure.get_figwidth() / (place.get_gridspec().ncols if place else 1)
    return textwrap.fill(title, max(12, int(panel_in * 72 / (0.6 * float(ax.title.get_fontsize())))))


def _variant(rank: int, count: int) -> dict[str, Any]:
    strength = 1 - (1 - _FAINTEST) * rank / max(count - 1, 1)
    return {"linestyle": LINES[rank % len(LINES)], "fillstyle": FILLS[rank % len(FILLS)], "alpha": strength}


def _figure(count: int, style: Style, parts: int) -> tuple[Drawn, list[Axes]]:
    import matplotlib as mpl

    width, height = mpl.rcParams["figure.figsize"]
    wide = 1 if width < _NARROW_IN else min(count, parts if parts > 1 else 2 if count == 4 else 3)
    tall = -(-count // wide)
    if style.venue is None:  # a screen has room
        size = (width if wide == 1 else 3.7 * wide, height * tall)
    else:
        size = (width, (height if wide == 1 else width / wide * 0.85) * tall)
    figure = Drawn(figsize=size)
    FigureCanvasAgg(figure)
    figure.rc = style.rc()
    return figure, [figure.add_subplot(tall, wide, place + 1) for place in range(count)]


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Add a legend below the panels, in as few rows as its width takes, and make the figure higher by it."""
    if not handles:
        return
    room = figure.get_figwidth() * figure.dpi
    for rows in range(-(-len(handles) // 8), len(handles) + 1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows))
        extent = legend.get_window_extent()
        if extent.width <= room or rows == len(handles):
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        legend.remove()


def band(
    ax: Axes, x: Any, mean: Any, std: Any, drawing: Mapping[str, Any], *, stairs: bool = False, markers: bool = False
) -> list[Artist]:
    """Draw a line of means, with a band of one standard deviation where there is one; return what was drawn."""
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    every = {"markevery": max(1, len(mean) // _MARKERS)} if markers else {"marker": ""}
    (line,) = ax.plot(x, mean, **{**drawing, **every}, drawstyle="steps-post" if stairs else "default")
    if not np.isfinite(std).any():
        return [line]
    look: dict[str, Any] = {"color": line.get_color(), "alpha": 0.16 * drawing["alpha"], "linewidth": 0}
    return [line, ax.fill_between(x, mean - std, mean + std, step="post" if stairs else None, **look)]
