"""Text of strangers made harmless: for a page, and for a spreadsheet that takes some cells for formulas."""

import base64
import unicodedata
from typing import Any, Final

import pandas as pd

_LAYOUT: Final = "\n\t"
_TURNING: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u2028\u2029"
)
"""Characters that nobody sees and that change the direction or the lines of what stands around them."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    r"""Return a text with each character that a page must not or cannot show written out, as ``\u202e``."""
    return "".join(_written_out(character) if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    return character in _TURNING or (unicodedata.category(character) in ("Cc", "Cs") and character not in _LAYOUT)


def _written_out(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV in which no text is taken for a formula; numbers stay numbers."""
    safe = frame.map(_cell)
    safe.columns = pd.Index([_cell(name) for name in frame.columns])
    return safe.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def data_uri(csv: str) -> str:
    """Return a CSV file as a link from which a reader saves it without any network."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv.encode()).decode()
