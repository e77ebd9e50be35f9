"""What people call a cell of a sweep: the name of its run, and beside it what the sweep varies that no name tells."""

from collections.abc import Mapping
from typing import Any, Final

from dst.options import shown
from dst.records.label import LABEL

_NAMED: Final = ("data", "model", "sparsity")
"""Groups whose choice is itself a word of the name."""


def cell_name(name: str, swept: Mapping[str, str], config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """Return the name of a run with what its sweep varies and the name does not tell, e.g. ``... schedule.lr.peak=1``.

    ``swept``: key or group -> its value in this cell, as it was typed. ``config`` has the values of keys. ``changed``:
    what was changed in the method, which the name tells unless a user gave the method a label.
    """
    told = frozenset() if LABEL in changed else changed.keys()
    words = [word.partition("(")[0] for word in name.split()]
    beside = {key: shown(config[key]) if key in config else text for key, text in swept.items() if key not in told}
    return " ".join([name, *(f"{key}={value}" for key, value in beside.items() if not _is_told(key, value, words))])


def recorded_name(about: Mapping[str, Any], otherwise: str) -> str:
    """Return the name of a cell as its ``run.json`` tells it; ``otherwise`` if that has no name."""
    name = str(about.get("name") or otherwise)
    return cell_name(name, about.get("swept", {}), about.get("config", {}), about.get("changed", {}))


def _is_told(key: str, value: str, words: list[str]) -> bool:
    """Say whether words of a name tell a value, such as ``density=0.1`` that of ``sparsity.density``."""
    is_word = key.removesuffix(".name") in _NAMED and value in words
    return is_word or any(f".{key}={value}".endswith(f".{word}") for word in words)
