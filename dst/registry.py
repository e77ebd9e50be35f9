"""Names of everything a config can choose, resolved lazily.

A member is a public function of one of the modules listed below, and its keyword-only parameters are the options that a
config can give it: *the signature is the schema* (``dst.options`` says how an option is declared). Both are read from
the source without importing it, so a config is checked without waiting for torch. To add a member, write a function.
Standard library only: anybody may import this.
"""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

from dst.options import (
    ASIDE,
    PATH,
    REQUIRED,
    SHA256,
    Clash,
    Each,
    Excludes,
    Names,
    Needs,
    OneOf,
    Option,
    Range,
    Text,
    Values,
    ZeroOr,
    read,
    suggest,
)

NONE: Final = "none"
"""The name that leaves a slot empty, where it may be."""

_PACKAGE: Final = Path(__file__).parent

_MODULES: Final[dict[str, tuple[str, ...]]] = {
    "model": (
        "models.mlp",
        "models.lenet",
        "models.alexnet",
        "models.vgg",
        "models.resnet_cifar",
        "models.resnet_imagenet",
        "models.wrn",
        "models.vit",
    ),
    "model_init": ("models.init",),
    "data": ("data.digits", "data.mnist", "data.cifar", "data.folder", "data.tiny_imagenet", "data.tabular"),
    "distribution": ("sparsity.distribution", "sparsity.saliency"),
    "criterion": ("sparsity.saliency",),
    "init": ("sparsity.init",),
    "pattern": (
        "sparsity.pattern.unstructured",
        "sparsity.pattern.n_m",
        "sparsity.pattern.constant_fan_in",
        "sparsity.pattern.shuffled_block",
    ),
    "drop": ("sparsity.drop",),
    "grow": ("sparsity.grow",),
    "redistribute": ("sparsity.redistribute",),
    "drop_fraction": ("sparsity.drop_fraction",),
    "density_schedule": ("sparsity.density_schedule",),
    "reparametrize": ("sparsity.reparametrize",),
    "optimizer": ("training.optimizer",),
    "lr": ("training.lr",),
    "correction": ("training.correction",),
    "procedure": ("procedures.single", "procedures.sup_tickets", "procedures.imp", "procedures.anneal"),
}
"""Kind -> the modules whose public functions are its members."""

_MAY_BE_EMPTY: Final = frozenset(
    {"distribution", "drop", "grow", "redistribute", "drop_fraction", "density_schedule", "reparametrize", "correction"}
)

_MARK: Final = "marked"
"""The decorator whose arguments say what the rest of the system must know about a part."""

_EXACTLY_ONE: Final = "exactly_one"
"""The decorator whose arguments are options of which exactly one must be given."""


class UnknownNameError(ValueError):
    """A name that its registry does not have."""


class DeclarationError(TypeError):
    """An option that is declared in a way that cannot be read, or differently by two members."""


@dataclass(frozen=True)
class MemberOf:
    """In a declaration: the name of a member of this kind."""

    kind: str

    def problem(self, option: Option, value: Any, values: Values, called: Names) -> str | None:
        """Return that there is no such member, and which comes near."""
        return None if value in members(self.kind) else suggest(value, members(self.kind))

    def __str__(self) -> str:
        return " | ".join(sorted(members(self.kind)))


@dataclass(frozen=True)
class Member:
    """One choice: where its code is, the options it takes, its marks, and the options of which exactly one is needed.

    ``passes_on``: it takes any others too, and gives them to the member that one of its options names.
    """

    module: str
    function: str
    options: Mapping[str, Option]
    marks: frozenset[str] = frozenset()
    exactly_one: tuple[str, ...] = ()
    passes_on: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of every option of its own that has one."""
        return {name: option.default for name, option in self.options.items() if option.default is not REQUIRED}

    def load(self) -> Any:
        """Import and return the function."""
        return getattr(importlib.import_module(self.module), self.function)


@cache
def members(kind: str) -> Mapping[str, Member]:
    """Return all members of a kind by name."""
    found = {NONE: Member("", "", {})} if kind in _MAY_BE_EMPTY else {}
    for module in _MODULES[kind]:
        found |= _members_of(module)
    return found


def find(kind: str, name: str) -> Member:
    """Return one member; ``UnknownNameError`` with a suggestion if there is none of that name."""
    known = members(kind)
    if name not in known:
        raise UnknownNameError(f"unknown {kind.replace('_', ' ')} '{name}': {suggest(name, known)}")
    return known[name]


def options(kind: str, name: str, given: Values) -> dict[str, Option]:
    """Return what a member takes: its own options, and those that it gives to the member that one of them names.

    ``given``: the values of its options. Passed-on options are optional; the other member then uses its defaults.
    """
    member = find(kind, name)
    found = dict(member.options)
    if member.passes_on:
        for other, option in _named(member):
            chosen = members(other).get(given.get(option, NONE))
            passed = {name: _left_open(option) for name, option in chosen.options.items()} if chosen else {}
            found = {**found, **passed, **member.options}
    return found


@cache
def slot_options(kind: str) -> Mapping[str, Mapping[str, Option]]:
    """Return every option that a member of a kind takes, by its name: what each of them declares, by member.

    Raises ``DeclarationError`` if two of them declare different types, or differ in what identifies a run.
    """
    found: dict[str, dict[str, Option]] = {}
    for name, member in members(kind).items():
        given = [members(other) for other, _ in _named(member)] if member.passes_on else []
        passed = {key: _left_open(option) for all_ in given for m in all_.values() for key, option in m.options.items()}
        for option in {**member.options, **passed, **member.options}.values():
            found.setdefault(option.name, {})[name] = option
    for option_name, by_member in found.items():
        if len({(str(option.type), option.aside) for option in by_member.values()}) > 1:
            where = members(kind)
            told = ", ".join(f"{where[name].module}.{name}: {given.type_name()}" for name, given in by_member.items())
            raise DeclarationError(f"the members of {kind} declare {option_name} in different ways ({told})")
    return found


def _named(member: Member) -> list[tuple[str, str]]:
    """Return ``(kind, option)`` for each option that names a member of another kind."""
    return [
        (condition.kind, option.name)
        for option in member.options.values()
        for condition in option.conditions
        if isinstance(condition, MemberOf)
    ]


def _left_open(option: Option) -> Option:
    return replace(option, default=None, nullable=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reading the source

_NAMES: Final[dict[str, Any]] = {
    "__builtins__": {},
    **{kind.__name__: kind for kind in (int, float, str, bool, list)},
    "Sequence": list,
    "Annotated": Annotated,
    **{kind.__name__: kind for kind in (Range, ZeroOr, OneOf, Each, Text, Needs, Excludes, Clash, MemberOf)},
    **{"ASIDE": ASIDE, "PATH": PATH, "SHA256": SHA256},
}
"""What an annotation of an option may be made of, beside the module's own ``Name = Annotated[...]``."""


@cache
def _members_of(module: str) -> dict[str, Member]:
    path = _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    names = dict(_NAMES)
    for node in statements:
        if isinstance(node, ast.Assign) and _is_declaration(node.value) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = _evaluated(node.value, names, f"{path}:{node.lineno}: {node.targets[0].id}")
    functions = [node for node in statements if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {
        function.name: Member(
            f"dst.{module}",
            function.name,
            {option.name: option for option in _options(function, names, path)},
            frozenset(_arguments(function, _MARK)),
            tuple(_arguments(function, _EXACTLY_ONE)),
            function.args.kwarg is not None,
        )
        for function in functions
    }


def _is_declaration(node: ast.expr) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Annotated"


def _options(function: ast.FunctionDef, names: dict[str, Any], path: Path) -> list[Option]:
    found = []
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        where = f"{path}:{argument.lineno}: parameter {argument.arg} of {function.name}"
        if argument.annotation is None:
            raise DeclarationError(
                f"{where} has no annotation: declare what it may be, e.g. {argument.arg}: {_EXAMPLE}"
            )
        annotation = _evaluated(argument.annotation, names, where)
        option = read(argument.arg, annotation, REQUIRED if default is None else _literal(default, where))
        if option.type not in _TYPES:
            known = ", ".join(getattr(kind, "__name__", "") if kind in _PLAIN else str(kind) for kind in _TYPES)
            raise DeclarationError(
                f"{where}: unknown type {ast.unparse(argument.annotation)}; it may be {known}, or None"
            )
        found.append(option)
    return found


_PLAIN: Final = (int, float, str, bool)
_TYPES: Final = (*_PLAIN, list[int], list[float], list[str], list[bool])
"""What options may be: what a config can hold, and a command line give."""

_EXAMPLE: Final = 'Annotated[float, Range(0), "what it does"]'


def _literal(node: ast.expr, where: str) -> Any:
    """Return a default, which is read as its annotation is."""
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise DeclarationError(
            f"{where}: its default {ast.unparse(node)} is no plain value; write the value"
        ) from error


def _evaluated(node: ast.expr, names: dict[str, Any], where: str) -> Any:
    """Return what an annotation means; it is evaluated without builtins and without the module's own imports."""
    try:
        return eval(compile(ast.Expression(node), where, "eval"), names)
    except Exception as error:
        known = ", ".join(sorted(name for name in names if name != "__builtins__"))
        told = f"{type(error).__name__}: {error}"
        raise DeclarationError(f"{where}: cannot read {ast.unparse(node)} ({told}); it may use {known}") from error


def _arguments(function: ast.FunctionDef, decorator: str) -> list[str]:
    """Return the arguments of a decorator of this name, if there is one."""
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == decorator]
    return [ast.literal_eval(argument) for call in named for argument in call.args]
