"""Figures as files and as text: the same figure is the same bytes."""

import hashlib
import re
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

FORMATS: Final = ("pdf", "svg", "png")
_DPI: Final = 200
_METADATA: Final[dict[str, dict[str, Any]]] = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "png": {"Software": None},
}


def svg(figure: Figure, *, outlines: bool = False) -> str:
    """Return a figure as an SVG element to stand in a page: no prolog, no date, names that no other figure has.

    Text is text in the reader's font, or, with ``outlines``, the shapes of its letters.
    """
    text = StringIO()
    with mpl.rc_context({**_rc(figure), "svg.fonttype": "path" if outlines else "none"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    element = text.getvalue()[text.getvalue().index("<svg") :]
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(?<= d=")[^"]+', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), element)
    return _with_own_names(re.sub(r"\s*<!--.*?-->", "", element, flags=re.DOTALL), getattr(figure, "name", ""))


def write(figure: Figure, path: Path) -> None:
    """Write a figure to a file of the format that its ending names: PDF with Type 42 fonts, SVG or PNG."""
    kind = path.suffix.removeprefix(".")
    if kind == "svg":
        path.write_text(svg(figure, outlines=True), encoding="utf-8")
        return
    content = BytesIO()
    with mpl.rc_context(_rc(figure)):
        figure.savefig(content, format=kind, dpi=_DPI, metadata=_METADATA[kind])
    path.write_bytes(content.getvalue())


def _rc(figure: Figure) -> Any:
    return getattr(figure, "rc", {})


def _with_own_names(element: str, name: str) -> str:
    """Return an SVG in which only what is referred to has an id, and that belongs to this figure alone."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', element))
    own = f"{name or 'figure'}-{hashlib.sha256(element.encode()).hexdigest()[:8]}-"
    element = re.sub(r' id="([^"]*)"', lambda found: f' id="{own}{found[1]}"' if found[1] in used else "", element)
    return re.sub(r'(href="#|url\(#)', lambda found: found[1] + own, element)
