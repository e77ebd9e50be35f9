"""How figures look: the theme, and the size and font of a venue. Text is embedded as Type 42, as conferences want."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from tueplots import bundles  # type: ignore[import-untyped]

from analysis.names import Look, look


@dataclass(frozen=True)
class Theme:
    """The colours of a theme: behind everything, of text and axes, and of the grid."""

    background: str
    ink: str
    grid: str


THEMES: Final = {
    "light": Theme("#ffffff", "#1b1f24", "#e3e6ea"),
    "dark": Theme("#15181c", "#e8eaed", "#33383f"),
}

VENUES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "aaai": bundles.aaai2024,
    "aistats": bundles.aistats2025,
    "colm": bundles.colm2026,
    "cvpr": bundles.cvpr2024,
    "eccv": bundles.eccv2024,
    "iclr": bundles.iclr2024,
    "icml": bundles.icml2024,
    "jmlr": bundles.jmlr2001,
    "neurips": bundles.neurips2024,
    "tmlr": bundles.tmlr2023,
    "uai": bundles.uai2023,
}
"""Name of a venue -> the newest style that tueplots has for it: the width of a column, and sizes of text."""

_OURS: Final = {
    **{"font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5, "legend.fontsize": 8.5},
    **{
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "font.family": "DejaVu Sans",
        "figure.figsize": (5.0, 3.1),
        "lines.markersize": 5,
    },
}
"""Without a venue: for a screen."""

_ALWAYS: Final = {
    "text.usetex": False,  # nobody needs LaTeX: text has the font of the paper, by matplotlib
    "text.latex.preamble": "",
    "text.parse_math": False,  # a dollar in a label is a dollar
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "dst",
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
    "savefig.pad_inches": 0.03,
}

_SERIF: Final = {"font.family": "STIXGeneral", "mathtext.fontset": "stix"}
"""Times, as matplotlib brings it: the same file on every machine, so that a figure has the same bytes."""


@dataclass(frozen=True)
class Style:
    """The look of a figure: a theme, and a venue or none."""

    theme: str = "light"
    venue: str | None = None

    @property
    def colours(self) -> Theme:
        """The colours of the theme."""
        return THEMES[self.theme]

    def look(self, method: str) -> Look:
        """Return how a method is shown in this theme."""
        return look(method, self.theme)

    def rc(self) -> Any:
        """Return all settings of matplotlib, whatever the user's own file of settings says."""
        not_looks = ("backend", "interactive")
        usual: dict[str, Any] = {name: value for name, value in mpl.rcParamsDefault.items() if name not in not_looks}
        sizes = {**VENUES[self.venue](), **_SERIF, "lines.markersize": 4} if self.venue else _OURS
        ink, grid = self.colours.ink, self.colours.grid
        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
        themed = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.colours.background)
        return {**usual, **sizes, **_ALWAYS, **themed, **dict.fromkeys(inked, ink), "grid.color": grid}

    def context(self) -> AbstractContextManager[None]:
        """Return a context in which matplotlib has these settings."""
        return mpl.rc_context(self.rc())
