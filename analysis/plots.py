"""Figures of results, each a function of a catalog."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analysis.names import COLOURS, MARKERS
from analysis.results import VALUES, accuracy_figures
from analysis.runs import LABELS, comparable
from analysis.text import cell_text
from dst.records.read import read_metrics

_VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {"fillstyle": "full", "linestyle": "-"},
    {"fillstyle": "none", "linestyle": "--"},
    {"fillstyle": "left", "linestyle": ":"},
    {"fillstyle": "top", "linestyle": "-."},
)


def accuracy_against_flops(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the test accuracy of each experiment against its training FLOPs relative to dense training.

    Each method has one colour and marker. Experiments that differ in density only are joined in order of FLOPs; other
    settings of a method get their own line and legend entry. Bars are the sample standard deviation over seeds. The
    axis of FLOPs is logarithmic if they span more than a decade.
    """
    ax, own_figure = _axes(ax)
    figures = accuracy_figures(frame).dropna(subset=["accuracy", "flops_train_ratio"]).sort_values("flops_train_ratio")
    names, title = _series(figures)
    settings = _settings(figures)
    for style, (name, method) in zip(_styles(), figures.groupby(names, sort=True), strict=False):
        variants = method.groupby(settings[method.index], sort=True)
        for variant, (setting, points) in zip(cycle(_VARIANTS), variants, strict=False):
            ax.errorbar(
                points["flops_train_ratio"], points["accuracy"], yerr=points["accuracy_std"],
                label=f"{name}, {setting}" if variants.ngroups > 1 else name, **style, **variant,
                markersize=6, linewidth=1.1, elinewidth=1.2, capsize=2.5,
            )  # fmt: skip
    ax.set(xlabel="training FLOPs (ratio to dense training)", ylabel="test accuracy (%)", title=title)
    low, high = figures["flops_train_ratio"].min(), figures["flops_train_ratio"].max()
    if high > 10 * low > 0:
        _make_logarithmic(ax, is_wide=high > 300 * low)
    return _finish(ax, own_figure)


def history(frame: pd.DataFrame, value: str, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a value of the history, such as ``sparsity/rs``, over the steps: one line per run, one colour per method.

    As in ``accuracy_against_flops``, other settings of a method get a line style and a legend entry of their own. Runs
    that never logged the value are left out. ``label`` is the name of the axis (default: the value's name).
    """
    ax, own_figure = _axes(ax)
    runs, columns = comparable(frame)
    runs = runs[[*columns.values(), "folder"]].set_axis([*columns, "folder"], axis="columns")
    names, title = _series(runs)
    settings = _settings(runs)
    for style, (name, method) in zip(_styles(), runs.groupby(names, sort=True), strict=False):
        variants = method.groupby(settings[method.index], sort=True)
        for variant, (setting, members) in zip(cycle(_VARIANTS), variants, strict=False):
            shown = f"{name}, {setting}" if variants.ngroups > 1 else name
            for folder in members["folder"]:
                rows = [row for row in read_metrics(Path(folder)) if row.get(value) is not None]
                if rows:
                    ax.plot(
                        [row["step"] for row in rows], [row[value] for row in rows], color=style["color"],
                        linestyle=variant["linestyle"], linewidth=1.4, alpha=0.85, label=shown,
                    )  # fmt: skip
                    shown = "_"  # the legend names an experiment once
    ax.set(xlabel="step", ylabel=label or value, title=title)
    return _finish(ax, own_figure)


def _axes(ax: Axes | None) -> tuple[Axes, Figure | None]:
    """Return the axes to draw on, and their figure if it was made here."""
    if ax is not None:
        return ax, None
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    return ax, figure


def _series(rows: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return the name of each row in the legend, and a title: the title says once what all rows share."""
    place = rows["data"].astype(str) + ", " + rows["model"].astype(str)
    method = rows["method"].astype(str)
    if place.nunique() > 1:
        return method + " (" + place + ")", ""
    return method, "".join(place.unique())


def _styles() -> Iterator[dict[str, Any]]:
    return ({"color": colour, "marker": marker} for colour, marker in zip(cycle(COLOURS), cycle(MARKERS)))


def _settings(figures: pd.DataFrame) -> pd.Series:
    """Return, as text, the settings in which rows of equal labels differ."""
    keys = figures.columns.drop([*LABELS, *VALUES, "folder"], errors="ignore")
    words = [", ".join(f"{key}={cell_text(row[key])}" for key in keys) for row in figures.to_dict("records")]
    return pd.Series(words, index=figures.index, dtype=object)


def _make_logarithmic(ax: Axes, is_wide: bool) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _finish(ax: Axes, own_figure: Figure | None) -> Axes:
    ax.grid(color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        legend = ax.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
        )  # beside the data, never over it
        if own_figure:  # long names widen the figure instead of squeezing the data
            own_figure.set_figwidth(5.8 + legend.get_window_extent().width / own_figure.dpi)
    return ax
