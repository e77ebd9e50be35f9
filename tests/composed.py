"""Configs as commands have them."""

from collections.abc import Sequence
from pathlib import Path

from dst.config.compose import compose_command
from dst.config.schema import Config


def last_given(words: Sequence[str]) -> list[str]:
    """Return the words of a command, of a key that is given twice the last: tests add what differs to what they share.

    A command itself takes no key twice.
    """
    last = {_key(word): place for place, word in enumerate(words)}
    return [word for place, word in enumerate(words) if last[_key(word)] == place]


def _key(word: str) -> str:
    """Return the key that a word of a command sets; the word itself if it sets none, or keys within a mapping."""
    key, _, value = word.lstrip("+").partition("=")
    return word if word.startswith("-") or not value or value.startswith("{") else key


def compose_cells(conf: Path, overrides: Sequence[str], *, multirun: bool) -> list[tuple[list[str], Config]]:
    """Return (overrides, config) of every cell of a command; see ``compose_command``."""
    cells = compose_command(conf, last_given(overrides), multirun=multirun).cells
    return [(cell.overrides, cell.config) for cell in cells]
