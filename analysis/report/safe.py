"""Text of strangers made harmless for a page, and files that a page holds."""

import base64

import pandas as pd

from analysis.text import csv_text, printable


def visible(text: str) -> str:
    """Return a text of several lines in which every character can be shown: others, such as control codes, as escapes.

    Characters that turn the direction of what stands around them are among these.
    """
    return "\n".join(map(printable, text.split("\n")))


def to_save(table: pd.DataFrame) -> str:
    """Return a table as the address of a CSV file, from which a reader saves it without any network."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv_text(table).encode()).decode()
