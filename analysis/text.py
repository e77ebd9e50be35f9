"""Values of tables and figures as text."""

import re
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Final, TextIO

import pandas as pd

from dst.words import some

NOTHING: Final = "—"
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_ASCII: Final = str.maketrans({NOTHING: "-", "±": "+-", "…": "..."})
_LONGEST: Final = 80
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""Where a text cell begins like this, a spreadsheet would compute it."""


def cell_text(value: Any, spec: str = ".10g") -> str:
    """Return a value of a table as text: a dash if it is missing, numbers by their format, digests cut short.

    Control characters, which a terminal would obey, are written as escapes.
    """
    if pd.isna(value):
        return NOTHING
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return format(value, spec) if isinstance(value, Real) and not isinstance(value, bool) else printable(str(value))


def printable(text: str) -> str:
    """Return a text in which every character can be shown: others, such as control codes, as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def show(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Print lines; where the terminal has no such characters, dashes and signs as their plain forms."""
    stream = stream or sys.stdout
    text = "".join(f"{line}\n" for line in lines)
    encoding = stream.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)


def aligned(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table of texts, its columns aligned at the right; a very long text is cut."""
    return (
        table.map(lambda text: text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
        .to_string(index=False)
        .split("\n")
    )


def csv_text(table: pd.DataFrame) -> str:
    """Return numbers and texts as CSV, in which no text is a formula to a spreadsheet."""
    safe = table.map(_safe).rename(columns=_safe)
    return safe.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as a CSV file (see ``csv_text``)."""
    path.write_text(csv_text(table), encoding="utf-8", newline="")


def counted(n: int, expected: int) -> str:
    """Return how many seeds there are, as "2/3" where some are missing."""
    return str(n) if n == expected else f"{n}/{expected}"


def listed(values: Sequence[str], most: int = 6) -> str:
    """Return values as one text, and of a long list its beginning."""
    return some(values, most)


def _safe(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)
