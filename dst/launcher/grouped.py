"""What is wrong with the cells of a sweep: each message once, with the cells that it is about."""

from collections.abc import Iterable, Sequence

LISTED = 8
"""At most this many cells, or groups of them, are listed."""


def own_overrides(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return for each cell what tells it from the others: those of its overrides that not all have."""
    common = set.intersection(*map(set, cells)) if cells else set()
    return [" ".join(text for text in cell if text not in common) for cell in cells]


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
    more = [f"and {len(names) - LISTED} more"] * (len(names) > LISTED)
    return between.join([*names[:LISTED], *more])
