"""Looking for runs below output roots, for the cells of a command."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dst.config.schema import ConfigError
from dst.records.same import by_id
from dst.records.walk import walk


@dataclass
class Look:
    """What lies below output roots: the run folders by root and run id, and the folders that cannot be read."""

    runs: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    closed: dict[Path, OSError] = field(default_factory=dict)


def look(roots: Iterable[str]) -> Look:
    """Look for runs below output roots; ConfigError if one of them cannot be read itself."""
    found = Look()
    for root in dict.fromkeys(roots):
        try:
            there = walk(Path(root))
        except OSError as error:
            raise ConfigError([f"output.root={root}: cannot look for runs there: {error}"]) from error
        found.runs[root] = by_id(there.runs)
        found.closed |= there.closed
    return found
