"""Figures from the records of runs: ``python -m analysis.figures DIR... --out FOLDER``, and a library of the same.

``FIGURES[name](frame, theme="dark", venue="neurips")`` draws one from a catalog, or returns None where no run has what
it shows; ``FIGURES[name].needs`` says what that is. ``svg`` gives a figure as text to stand in a page.
"""

from analysis.figures.gallery import FIGURES, Drawing
from analysis.figures.style import THEMES, VENUES
from analysis.figures.write import FORMATS, svg, write

__all__ = ["FIGURES", "FORMATS", "THEMES", "VENUES", "Drawing", "svg", "write"]
