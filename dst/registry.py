"""Names of everything a config can choose, resolved lazily.

A member is a public function of one of the modules listed below, and its keyword-only parameters are the options that a
config can give it: *the signature is the schema*. Both are read from the source without importing it, so a config is
checked without waiting for torch. To add a member, write a function. Standard library only: anybody may import this.
"""

import ast
import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

REQUIRED: Final = object()
"""Marks an option without a default."""

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
    ),
    "data": ("data.digits", "data.mnist", "data.cifar", "data.folder", "data.tiny_imagenet"),
    "distribution": ("sparsity.distribution", "sparsity.saliency"),
    "criterion": ("sparsity.saliency",),
    "init": ("sparsity.init",),
    "pattern": (
        "sparsity.pattern.unstructured",
        "sparsity.pattern.n_m",
        "sparsity.pattern.constant_fan_in",
    ),
    "drop": ("sparsity.drop",),
    "grow": ("sparsity.grow",),
    "redistribute": ("sparsity.redistribute",),
    "drop_fraction": ("sparsity.drop_fraction",),
    "density_schedule": ("sparsity.density_schedule",),
    "optimizer": ("training.optimizer",),
    "lr": ("training.lr",),
}
"""Kind -> the modules whose public functions are its members."""

_MAY_BE_EMPTY: Final = frozenset({"distribution", "drop", "grow", "redistribute", "drop_fraction", "density_schedule"})

_MARK: Final = "marked"
"""The decorator whose arguments say what the rest of the system must know about a part."""


class UnknownNameError(ValueError):
    """A name that its registry does not have."""


@dataclass(frozen=True)
class Member:
    """One choice: where its code is, the options it takes (option name -> default, or ``REQUIRED``), and its marks."""

    module: str
    function: str
    options: Mapping[str, Any]
    marks: frozenset[str] = frozenset()

    def load(self) -> Any:
        """Import and return the function."""
        return getattr(importlib.import_module(self.module), self.function)


@cache
def members(kind: str) -> Mapping[str, Member]:
    """Return all members of a kind by name."""
    found = {NONE: Member("", "", {})} if kind in _MAY_BE_EMPTY else {}
    for module in _MODULES[kind]:
        for function in _public_functions(module):
            found[function.name] = Member(f"dst.{module}", function.name, _options(function), _marks(function))
    return found


def find(kind: str, name: str) -> Member:
    """Return one member; ``UnknownNameError`` with a suggestion if there is none of that name."""
    known = members(kind)
    if name not in known:
        raise UnknownNameError(f"unknown {kind.replace('_', ' ')} '{name}': {suggest(name, known)}")
    return known[name]


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return a sentence for an error message: the nearest allowed word if any, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(names) or '(nothing)'}"


def _public_functions(module: str) -> list[ast.FunctionDef]:
    source = _PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    statements = ast.parse(source).body
    return [node for node in statements if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _options(function: ast.FunctionDef) -> dict[str, Any]:
    names = (argument.arg for argument in function.args.kwonlyargs)
    defaults = (REQUIRED if node is None else ast.literal_eval(node) for node in function.args.kw_defaults)
    return dict(zip(names, defaults, strict=True))


def _marks(function: ast.FunctionDef) -> frozenset[str]:
    """Return the arguments of the ``marked(...)`` decorator, if there is one."""
    calls = [node for node in function.decorator_list if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == _MARK]
    return frozenset(ast.literal_eval(argument) for call in named for argument in call.args)
