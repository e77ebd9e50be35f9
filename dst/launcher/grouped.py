"""What is wrong with the cells of a sweep: each message once, with the cells that it is about."""

from collections.abc import Iterable, Sequence

from dst.words import few


def grouped(problems: Iterable[tuple[str, str]], cells: int) -> list[str]:
    """Return each message once, with the cells that it is about unless it is about all ``cells``.

    ``problems``: the name of a cell, and a message about it.
    """
    about: dict[str, dict[str, None]] = {}
    for cell, text in problems:
        about.setdefault(text, {})[cell] = None
    return [
        text if len(names) == cells else f"{text} (in {len(names)} of {cells} cells: {listed(list(names))})"
        for text, names in about.items()
    ]


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Return the first of some names, and how many more there are."""
    return between.join(few(names))
