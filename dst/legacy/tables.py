"""The published parsers as data: every option with its default, its meaning and what becomes of it here."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

PARSERS: Final = files("dst.legacy") / "parsers"

MAPS, IGNORED, NONE = CLASSES = ("maps", "ignored", "none")
"""What becomes of an option: it maps to keys; the published code ignores it; it has no equivalent."""

KINDS: Final = {"int": int, "float": float, "floats": float, "str": str, "positional": str}
"""How the text of an option becomes its value; a ``flag`` takes none, ``floats`` are any number of them."""


class LegacyError(Exception):
    """A command that cannot be translated. ``problems``: the reasons, for the user."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Option:
    """A row of a table.

    ``key``: the keys that it decides on. ``convert``: how a value becomes that of the key, or ``recipe`` where several
    options decide together. ``as_run``: the value that the published code uses whatever is given, if there is one.
    ``named``: by the ``parser``, or by the ``readme`` alone, whose commands the parser refuses.
    """

    option: str
    aliases: tuple[str, ...]
    kind: str
    default: str
    becomes: str
    keys: tuple[str, ...]
    convert: str
    as_run: str
    named: str
    meaning: str

    @property
    def name(self) -> str:
        """The attribute of the parsed command line."""
        return "data" if self.kind == "positional" else self.option.lstrip("-").replace("-", "_")

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names on the command line."""
        return (self.option, *self.aliases)

    def value(self, text: str) -> Any:
        """Return the value that a text is; ValueError if it is none."""
        if self.kind == "flag":
            return bool(text)
        if self.kind == "floats":
            return [float(part) for part in text.split()]
        return KINDS[self.kind](text) if text or self.kind == "str" else None


@dataclass(frozen=True)
class Program:
    """A published program. ``papers``, ``scripts``, ``folders``, ``spellings``: as in ``parsers/index.yaml``."""

    name: str
    title: str
    papers: tuple[str, ...]
    scripts: tuple[str, ...]
    folders: tuple[str, ...]
    spellings: tuple[str, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of its parser."""
        return _options(self.name)


@cache
def programs() -> Mapping[str, Program]:
    """Return all programs by the names of their parsers."""
    index = yaml.safe_load((PARSERS / "index.yaml").read_text(encoding="utf-8"))
    return {name: _program(name, **entry) for name, entry in index.items()}


def _program(name: str, title: str, **lists: list[str]) -> Program:
    return Program(name, title, **{key: tuple(value) for key, value in lists.items()})


@cache
def str_configs() -> Mapping[str, Mapping[str, Any]]:
    """Return the options of STR's published configs by their names."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load((PARSERS / "str_configs.yaml").read_text(encoding="utf-8"))
    return found


@cache
def _options(name: str) -> tuple[Option, ...]:
    text = (PARSERS / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(map(_option, csv.DictReader(text.splitlines())))


def _option(row: dict[str, str]) -> Option:
    split = {"aliases": tuple(row.pop("aliases").split()), "keys": tuple(filter(None, row.pop("key").split(";")))}
    return Option(becomes=row.pop("class"), **split, **row)  # type: ignore[arg-type]
