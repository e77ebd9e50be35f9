"""Overrides as they are typed, and as Hydra has to read them.

Hydra's grammar takes ``1e3`` for a number wherever it stands, and refuses ``é``, ``~`` or ``#`` outside of quotes. Here
a key that holds text gets the text that was typed: what Hydra would read otherwise, or not at all, is put in quotes.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dst.config.schema import Config, ConfigError, get, nodes, with_value
from dst.options import OneOf, Option, declared
from dst.registry import MemberOf

_UNREAD: Final = re.compile(r"""[^a-zA-Z0-9_/\\+.$%*@?|()\[\]{},:=\x20\t'"-]""")
"""Characters that Hydra's grammar has in quotes only."""
_NUMBERS: Final = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
_WHOLE: Final = (OverrideLexer.QUOTED_VALUE, OverrideLexer.INTERPOLATION)
"""Within these any character may stand."""
_QUOTES: Final = ("'", '"')
_OF_VALUES: Final = ("choice", "shuffle")
"""Functions whose arguments are values of the key; those of others, such as range, are numbers, or sorted as such."""


class Part(NamedTuple):
    """A word within the value of an override: the dotted key that it is for, and the parser's node."""

    key: str
    node: Any


def for_hydra(typed: str) -> str:
    """Return an override as Hydra reads it so that text is what was typed; as it is if it cannot be read at all."""
    try:
        parts = list(_parts(_tree(_stand_in(typed))))
    except HydraException:
        return typed
    text = typed
    for part in reversed(parts):
        if (value := _otherwise_read(part.node, typed, is_text=part.key in text_keys())) is not None:
            start, stop = part.node.start.start, part.node.stop.stop + 1
            text = f"{text[:start]}{quoted(value)}{text[stop:]}"
    return text


def keys_given(text: str) -> list[str]:
    """Return the dotted keys that an override of Hydra's gives, more than once if it gives one so; none if unreadable.

    A mapping gives the keys in it. A choice of values gives a key once.
    """
    try:
        tree = _tree(text)
    except HydraException:
        return []
    name = tree.key().getText()
    found = [_given(element, name) for element in _elements(tree.value())] if tree.value() else []
    return max(found, key=len, default=[name])


def quoted(value: str) -> str:
    """Return a text in quotes, as Hydra reads it."""
    return str(QuotedString(value, Quote.double if "'" in value else Quote.single).with_quotes())


def as_text(typed: str) -> str | None:
    """Return how to type, in a shell, an override whose value is all that is behind ``=``; None if that cannot be.

    Where a key holds a list of texts, the value is one, however many brackets and commas it was typed with.
    """
    key, _, value = typed.partition("=")
    if not value or key not in _open_keys():
        return None
    items = _items(value) if _open_keys()[key] else None
    wanted, told = (value, _in_other_quotes(value)) if items is None else (items, _listed(items))
    text = f"{key}={told}"
    if items is not None and any(item[:1] in _QUOTES or item[-1:] in _QUOTES for item in items):
        return None  # a comma was in quotes, or these are of another kind
    try:
        return shlex.quote(text) if parse_one(text).value() == wanted else None
    except (HydraException, OmegaConfBaseException):
        return None


def _items(value: str) -> list[str]:
    """Return the texts of a list as it was typed, without quotes around them."""
    items = [item.strip() for item in value.removeprefix("[").removesuffix("]").split(",")]
    return [item[1:-1] if item[0] == item[-1] and item[0] in _QUOTES else item for item in items if item]


def _listed(items: Iterable[str]) -> str:
    return f"[{','.join(map(_in_other_quotes, items))}]"


def _in_other_quotes(value: str) -> str:
    """Return a text in quotes, of the kind that its shell need not escape, if it has a choice."""
    return str(QuotedString(value, Quote.single if '"' in value else Quote.double).with_quotes())


def check_texts(typed: Iterable[str]) -> None:
    """Raise ConfigError, with the command that works, for each list given to a key of text, or text to one of lists."""
    problems = [
        f"{text}: {wanted}{f'; write {one}' if (one := as_text(text)) else ''}"
        for text in typed
        if (wanted := _wanted(text)) is not None
    ]
    if problems:
        raise ConfigError(problems)


def _wanted(typed: str) -> str | None:
    """Return what a key of text, or of a list of texts, has to be if an override gives it another kind of value."""
    try:
        tree = _tree(_stand_in(typed))
    except HydraException:
        return None
    key, elements = tree.key().getText(), _elements(tree.value()) if tree.value() else []
    if key not in _open_keys():
        return None
    if _open_keys()[key]:
        plain = [element.primitive().getText() for element in elements if element.primitive()]
        is_text = any(text.lower() != "null" and "${" not in text for text in plain)
        return f"{key} is a list of texts" if is_text else None
    is_list = any(element.listContainer() or element.dictContainer() for element in elements)
    return f"{key} is a text, not a list or a mapping" if is_list else None


@cache
def parse_one(text: str) -> Override:
    """Return one override as Hydra reads it; whatever Hydra raises if it cannot."""
    OmegaConf.create([text])  # Hydra keeps the text in its own config, which refuses what is no interpolation
    return OverridesParser.create().parse_override(text)


def _stand_in(typed: str) -> str:
    """Return an override of the same length that Hydra's grammar can read, though its text may be another one."""
    key, equals, value = typed.partition("=")
    return f"{key}{equals}{_UNREAD.sub('x', value)}"


def _otherwise_read(node: Any, typed: str, *, is_text: bool) -> str | None:
    """Return the text of a word if Hydra cannot read it or, where it ``is_text``, would read another text."""
    tokens = [child.symbol for child in node.getChildren()]
    while tokens and tokens[-1].type == OverrideLexer.WS:
        tokens.pop()
    while tokens and tokens[0].type == OverrideLexer.WS:
        tokens.pop(0)
    pieces = [(token.type, typed[token.start : token.stop + 1]) for token in tokens]
    value = "".join(piece[1::2] if kind == OverrideLexer.ESC else piece for kind, piece in pieces)
    if any(kind not in _WHOLE and _UNREAD.search(piece) for kind, piece in pieces):
        return value
    is_number = is_text and len(pieces) == 1 and pieces[0][0] in _NUMBERS
    return value if is_number and str(_number(value)) != value else None


def _number(text: str) -> bool | int | float:
    """Return what Hydra makes of a word that it takes for a number or a truth value."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return float(text)


# ---------------------------------------------------------------------------------------------------------------------
# Hydra's grammar


def _tree(text: str) -> Any:
    """Return the syntax tree of an override; HydraException if it has none."""
    told = HydraErrorListener()
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(told)
    return parser.override()  # type: ignore[no-untyped-call]


def _parts(tree: Any) -> Iterator[Part]:
    """Yield the words of the values of an override, in order."""
    for element in _elements(tree.value()) if tree.value() else ():
        yield from _words(element, tree.key().getText())


def _elements(value: Any) -> list[Any]:
    """Return the values that are swept, or the one."""
    return list(value.simpleChoiceSweep().element() if value.simpleChoiceSweep() else [value.element()])


def _words(element: Any, key: str) -> Iterator[Part]:
    if element.primitive():
        yield Part(key, element.primitive())
    elif element.listContainer():
        for item in element.listContainer().element():
            yield from _words(item, key)
    elif element.dictContainer():
        for pair in element.dictContainer().dictKeyValuePair():
            yield from _words(pair.element(), f"{key}.{pair.dictKey().getText()}")
    elif element.function().ID().getText() in _OF_VALUES:
        for item in element.function().element():
            yield from _words(item, key)


def _given(element: Any, key: str) -> list[str]:
    """Return the keys that a value gives."""
    pairs = element.dictContainer().dictKeyValuePair() if element.dictContainer() else []
    return [below for pair in pairs for below in _given(pair.element(), f"{key}.{pair.dictKey().getText()}")] or [key]


# ---------------------------------------------------------------------------------------------------------------------
# Keys


@cache
def text_keys() -> frozenset[str]:
    """Return the dotted keys whose values are text, or lists of it, and the groups, whose options are names."""
    groups = {key for key, _, _ in nodes(Config()) if key and "." not in key}
    return frozenset({*_keys(_holds_text), *groups, *_FURTHER})


_FURTHER: Final = ("experiment", "hydra.searchpath")


@cache
def _open_keys() -> dict[str, bool]:
    """Return the dotted keys that may hold any text, no name of a choice -> whether they hold a list of texts."""
    lists, texts = set(_keys(_holds_texts)), set(_keys(_holds_text))
    choices = set(_keys(lambda option: any(isinstance(item, OneOf | MemberOf) for item in option.conditions)))
    return {key: key in lists for key in texts - choices}


@cache
def path_keys() -> tuple[str, ...]:
    """Return the dotted keys whose values are paths."""
    return tuple(_keys(lambda option: option.path))


def _holds_text(option: Option) -> bool:
    return option.type is str or _holds_texts(option)


def _holds_texts(option: Option) -> bool:
    return get_args(option.type) == (str,)


def _keys(wanted: Callable[[Option], bool]) -> Iterator[str]:
    for key, node, _ in nodes(Config()):
        yield from (f"{key}.{name}".lstrip(".") for name, option in declared(type(node)).items() if wanted(option))


def at_home(config: Config) -> Config:
    """Return a config in which ``~`` at the beginning of a path is the home folder; ConfigError if there is none."""
    problems = []
    for key in path_keys():
        value = get(config, key)
        if not isinstance(value, str) or not value.startswith("~"):
            continue
        found = os.path.expanduser(value)
        if found == value:
            problems.append(f"{key}={value}: there is no such home folder; for a folder of this name, write ./{value}")
        config = with_value(config, key, found)
    if problems:
        raise ConfigError(problems)
    return config


def repeated(overrides: list[Override]) -> Iterator[str]:
    """Yield each key that a command gives more than once, with the overrides that do."""
    by_key: dict[str, list[str]] = {}
    for override in overrides:
        for key in keys_given(str(override.input_line)):
            by_key.setdefault(key, []).append(str(override.input_line))
    for key, texts in by_key.items():
        if len(texts) > 1:
            told = " and ".join(dict.fromkeys(texts))
            often = "twice" if len(texts) == 2 else f"{len(texts)} times"
            yield f"{told}: {key} is given {often}; leave one"
