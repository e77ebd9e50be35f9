"""Lists and names as words of a message. Standard library only."""

from collections.abc import Sequence

MOST = 8
"""At most this many are named, unless something else is said."""


def few(items: Sequence[str], most: int = MOST, more: str = "more") -> list[str]:
    """Return the first of some items, and how many more there are: ``a``, ``b``, ``and 2 more``."""
    return [*items[:most], *([f"and {len(items) - most} {more}"] if len(items) > most else [])]


def some(items: Sequence[str], most: int = MOST) -> str:
    """Return the first of some items, and how many more there are, in words: ``a, b and 2 more``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def one_line(text: str) -> str:
    """Return a text, such as the name of a folder, in one line: what is not printable is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
