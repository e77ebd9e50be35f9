"""What is given on the command line of a tool, as ``argparse`` takes it.

An empty value, such as that of a shell variable that is not set, is an error: as a path it would mean the current
folder, as a text the default.
"""

import math
from argparse import ArgumentTypeError
from pathlib import Path


def path(text: str) -> Path:
    """Return the path that was given; ArgumentTypeError if it is empty."""
    if not text.strip():
        raise ArgumentTypeError(f"{text!r} is empty, a path is needed; . is the current folder")
    return Path(text)


def word(text: str) -> str:
    """Return the text that was given; ArgumentTypeError if it is empty."""
    if not text.strip():
        raise ArgumentTypeError(f"{text!r} is empty: give a value, or leave the option out")
    return text


def seconds(text: str) -> float:
    """Return a time that was given; ArgumentTypeError if it is no positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"must be a positive number of seconds, not {text!r}")
    return value
