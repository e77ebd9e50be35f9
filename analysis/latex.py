"""Tables as LaTeX for one column of an article: packages ``booktabs``, ``siunitx`` and ``adjustbox``.

Numbers are aligned at their points, texts are escaped, and a table that is too wide for its column is made smaller.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from analysis.names import look
from analysis.text import NOTHING

HEAD: Final = r"% In the preamble: \usepackage{booktabs,siunitx,adjustbox}. Make it again by python -m analysis.tables."

MINUS: Final = "\N{MINUS SIGN}"
NOT_TOLD: Final = r"^{\ast}"
NOT_TESTED: Final = r"^{\dagger}"

_SPECIAL: Final = {
    **{character: f"\\{character}" for character in "_%&#"},
    **{"$": r"$\mathdollar$", "{": r"$\{$", "}": r"$\}$"},
    **{"\\": r"$\backslash$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", '"': "''"},
    **{"±": r"$\pm$", MINUS: "$-$", NOTHING: "--"},
}
_ACCENTS: Final = "\N{COMBINING GRAVE ACCENT}\N{COMBINING ACUTE ACCENT}\N{COMBINING CIRCUMFLEX ACCENT}" + (
    "\N{COMBINING TILDE}\N{COMBINING DIAERESIS}\N{COMBINING CEDILLA}\N{COMBINING CARON}"
)
_LONG: Final = 24
"""Characters of a text from which on its column wraps."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading and cells, both as LaTeX, and how they are aligned."""

    heading: str
    cells: Sequence[str]
    alignment: str


def escaped(text: str) -> str:
    """Return a text as LaTeX that every engine sets; characters that pdflatex lacks by number (``U+4E2D``)."""
    return "".join(_escaped(character) for character in unicodedata.normalize("NFC", text))


def breakable(text: str) -> str:
    """Return a text as LaTeX whose long words may be broken: paths and keys behind their signs, others anywhere."""
    return " ".join(map(_breakable, text.split(" ")))


def words(heading: str, cells: Sequence[str]) -> Column:
    """Return a column of texts; long ones wrap."""
    if max(map(len, cells), default=0) < _LONG:
        return Column(escaped(heading), [escaped(cell) for cell in cells], "l")
    wrapped = r">{\raggedright\arraybackslash}p{0.36\columnwidth}"
    return Column(escaped(heading), [breakable(cell) for cell in cells], wrapped)


def methods(heading: str, cells: Sequence[str]) -> Column:
    """Return a column of methods by the names under which they are shown."""
    return words(heading, [look(cell).name for cell in cells])


def numbers(heading: str, cells: Sequence[str], bold: Sequence[bool] = ()) -> Column:
    """Return a column of numbers, given as texts, aligned at their points; others stand in its middle."""
    cells = [cell.removeprefix("+") for cell in cells]
    plain = [cell if _is_plain(cell) else "" for cell in cells]
    strong = [*bold, *[False] * len(cells)]
    shown = [
        (rf"\bfseries {cell}" if emphasised else cell) if number else f"{{{escaped(cell)}}}"
        for cell, number, emphasised in zip(cells, plain, strong, strict=False)
    ]
    if not any(plain):
        return Column(f"{{{heading}}}", shown, "r")
    weight = ",detect-weight,mode=text" if any(bold) else ""
    return Column(f"{{{heading}}}", shown, f"S[table-format={_form(plain)}{weight}]")


def spreads(cells: Sequence[str], marks: Sequence[str] = ()) -> Column:
    """Return a column of deviations, given as texts, to stand behind their means; ``marks`` stand behind them."""
    signs = [*marks, *[""] * len(cells)]
    shown = [
        "".join([rf"$\pm$\,{cell}" if _is_plain(cell) else "", rf"\rlap{{${sign}$}}" if sign else ""])
        for cell, sign in zip([*cells, *[""] * (len(marks) - len(cells))], signs, strict=False)
    ]
    return Column("", shown, r"@{\,}l")


def tabular(columns: Sequence[Column]) -> str:
    """Return a table with rules above, below and under its headings; no wider than its column of the article."""
    headings, skipped = [], False
    for column, after in zip(columns, [*columns[1:], None], strict=True):
        if skipped:
            skipped = False
            continue
        skipped = after is not None and not after.heading
        headings.append(rf"\multicolumn{{2}}{{c}}{{{column.heading.strip('{}')}}}" if skipped else column.heading)
    frame = pd.DataFrame(dict(enumerate(column.cells for column in columns)))
    spec = "@{}" + "".join(column.alignment for column in columns) + "@{}"
    lines = frame.style.hide(axis="index").to_latex(hrules=True, column_format=spec).splitlines()
    lines[2] = " & ".join(headings) + r" \\"
    return "\n".join([r"\begin{adjustbox}{max width=\columnwidth}", *lines, r"\end{adjustbox}"])


def document(parts: Sequence[tuple[str, Sequence[Column]]], notes: Sequence[str], texts: Sequence[str]) -> str:
    """Return tables with a title each, and below them notes, which are LaTeX, and texts."""
    lines = [HEAD, r"{\footnotesize\setlength{\tabcolsep}{3pt}%"]
    for title, columns in parts:
        lines += [rf"\par\smallskip\noindent\textit{{{breakable(title)}}}\par"] if title else []
        lines += [r"\noindent", tabular(columns)]
    for note in (*notes, *map(breakable, texts)):
        lines.append(rf"\par\smallskip{{\raggedright\noindent {note}\par}}")
    return "\n".join([*lines, "}", ""])


def _breakable(word: str) -> str:
    pieces = re.findall(r".{1,15}?[/_.=,:-]+|.{1,16}", word, flags=re.DOTALL) if len(word) > 16 else [word]
    return r"\allowbreak{}".join(map(escaped, pieces))


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii() and character.isprintable():
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS:
        return character
    return f"U+{ord(character):04X}"


def _is_plain(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?", text) is not None


def _form(cells: Sequence[str]) -> str:
    """Return how many digits numbers have before and behind the point, as siunitx reserves room for them."""
    parts = [cell.lstrip("+-").partition(".") for cell in cells if cell]
    signed = "-" if any(cell.startswith("-") for cell in cells) else ""
    whole, rest = (max(len(part[place]) for part in parts) for place in (0, 2))
    return f"{signed}{whole}.{rest}" if rest else f"{signed}{whole}.0"
