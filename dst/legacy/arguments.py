"""Command lines as the published parsers read them: Python's own argparse, built from the tables."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dst.legacy.tables import KINDS, LegacyError, Option, Program


@dataclass(frozen=True)
class Given:
    """A command line that was read. ``values``: of all options, by name; ``given``: the names of those on the line."""

    values: dict[str, Any]
    given: frozenset[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LegacyError(message)


def parse(program: Program, words: Sequence[str]) -> Given:
    """Return a command line as its program reads it; LegacyError with all that it does not take."""
    found, unknown = _parser(program).parse_known_args(list(words))
    if unknown:
        raise LegacyError(*_told(program, unknown))
    given = vars(found)
    defaults = {option.name: option.value(option.default) for option in reversed(program.options)}
    return Given(defaults | given, frozenset(given))


def _parser(program: Program) -> _Parser:
    parser = _Parser(prog=program.scripts[0], add_help=False, argument_default=argparse.SUPPRESS)
    for option in program.options:
        _add(parser, option)
    return parser


def _add(parser: _Parser, option: Option) -> None:
    if option.kind == "positional":
        parser.add_argument("data")
    elif option.kind == "flag":
        parser.add_argument(*option.spellings, dest=option.name, action="store_true")
    elif option.kind == "floats":
        parser.add_argument(*option.spellings, dest=option.name, type=float, nargs="*")
    else:
        parser.add_argument(*option.spellings, dest=option.name, type=KINDS[option.kind])


def _told(program: Program, unknown: Sequence[str]) -> list[str]:
    """Return what to say of words that a program does not take."""
    known = [spelling for option in program.options for spelling in option.spellings if spelling.startswith("-")]
    told = []
    for word in unknown:
        if word.startswith("-"):
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, known, n=1)
            told.append(f"{name}: no option of {program.title}" + "".join(f"; did you mean {word}?" for word in near))
    return told or [f"{' '.join(unknown)}: {program.title} takes no such argument"]
