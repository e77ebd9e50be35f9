"""The figures of a page, drawn for light and for dark paper."""

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO

import pandas as pd
from markupsafe import Markup

from analysis.plots import accuracy_against_flops, history, plt
from analysis.report.drawings import inline


@dataclass(frozen=True)
class Drawing:
    """A figure of a page: its title, what it shows, and the SVG element."""

    title: str
    about: str
    svg: Markup


def drawings(frame: pd.DataFrame, tell: Callable[[str], None]) -> list[Drawing]:
    """Return the figures that the runs of a catalog have something to show in. ``tell`` hears what is drawn."""
    plt.switch_backend("Agg")
    drawn = []
    for nth, (title, ax) in enumerate(
        [("accuracy over FLOPs", accuracy_against_flops(frame)), ("Rs", history(frame, "sparsity/rs"))]
    ):
        tell(f"figure: {title}")
        with plt.rc_context({"svg.hashsalt": "x", "svg.fonttype": "none"}):
            s = StringIO()
            ax.figure.savefig(s, format="svg", metadata={"Date": None}, transparent=True)
            t = s.getvalue()
        drawn.append(Drawing(title, f"{title} about", inline(t, t, name=f"figure-{nth}", title=title, about="About")))
    return drawn
