"""The figures of a page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pandas as pd
from markupsafe import Markup

from analysis.figures import FIGURES, svg
from analysis.report.drawings import Styles, inline
from analysis.rows import TableError

_COLUMN: Final = 6.0
"""Figures wider than this, in inches, do not fit into one of two columns."""


@dataclass(frozen=True)
class Shown:
    """A figure of a page: its title, what it shows, the SVG element, and whether it needs all the page's width."""

    title: str
    caption: str
    svg: Markup
    is_wide: bool


def drawings(frame: pd.DataFrame, styles: Styles, tell: Callable[[str], None] = lambda _: None) -> Iterator[Shown]:
    """Yield the figures in which the runs of a catalog have something to show. ``tell`` hears which one is drawn.

    Runs that no table can show (``TableError``) are in no figure that is made from it.
    """
    for nth, (name, drawing) in enumerate(FIGURES.items(), 1):
        tell(f"figure {nth}/{len(FIGURES)}: {drawing.title}")
        try:
            drawn = drawing(frame)
        except TableError:
            continue
        if drawn is not None:
            about = {"title": drawing.title, "about": drawing.caption}
            element = inline(svg(drawn), styles, name=f"figure-{name}", **about)
            yield Shown(drawing.title, drawing.caption, element, drawn.get_figwidth() > _COLUMN)
