"""Names of everything a config can choose, resolved lazily.

A member is a public function or class named by ``module:attribute``. Its row also says which options it takes and
their defaults, so that a config can be checked without importing torch; a test compares the rows with the signatures.
Standard library only: anybody may import this module.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

REQUIRED: Final = object()
"""Marks an option without a default."""


class UnknownNameError(ValueError):
    """A name that its registry does not have."""


@dataclass(frozen=True)
class Member:
    """One choice: where its code is and the options it takes (option name -> default, or ``REQUIRED``)."""

    target: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def load(self) -> Any:
        """Import and return the function or class."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Return a sentence for an error message: the nearest allowed word if any, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(names) or '(nothing)'}"


def members(kind: str) -> Mapping[str, Member]:
    """Return all members of a kind by name."""
    return _REGISTRY[kind]


def find(kind: str, name: str) -> Member:
    """Return one member; ``UnknownNameError`` with a suggestion if there is none of that name."""
    known = _REGISTRY[kind]
    if name not in known:
        raise UnknownNameError(f"unknown {kind.replace('_', ' ')} '{name}': {suggest(name, known)}")
    return known[name]


def register(kind: str, name: str, target: str, **options: Any) -> None:
    """Add a member from outside this package; options are its keyword options with their defaults."""
    if name in _REGISTRY[kind]:
        raise ValueError(f"{kind} '{name}' is registered already, as {_REGISTRY[kind][name].target}")
    _REGISTRY[kind][name] = Member(target, options)


def _members(module: str, **rows: Mapping[str, Any]) -> dict[str, Member]:
    return {name: Member(f"{module}:{name}", options) for name, options in rows.items()}


_REGISTRY: Final[dict[str, dict[str, Member]]] = {
    "model": {
        **_members("dst.models.mlp", mlp={"hidden": REQUIRED}, lenet_300_100={}),
        **_members("dst.models.lenet", lenet_5={}),
        **_members("dst.models.vgg", vgg_c={}),
        **_members("dst.models.resnet_cifar", resnet18={}),
        **_members("dst.models.resnet_imagenet", resnet50={}),
    },
    "data": {
        **_members("dst.data.digits", digits={}),
        **_members("dst.data.mnist", mnist={}, fashion_mnist={}),
    },
    "distribution": _members("dst.sparsity.distribution", dense={}, uniform={}, er={}, erk={}),
    "init": _members("dst.sparsity.init", random={}),
    "pattern": _members("dst.sparsity.pattern.unstructured", unstructured={}),
    "drop": {
        "none": Member(""),
        **_members("dst.sparsity.drop", magnitude={}, random={}),
    },
    "grow": {
        "none": Member(""),
        **_members("dst.sparsity.grow", gradient={}, random={}),
    },
    "drop_fraction": {
        "none": Member(""),
        **_members(
            "dst.sparsity.schedule",
            constant={"initial": REQUIRED},
            cosine={"initial": REQUIRED, "floor": 0.0, "horizon": "end"},
            linear={"initial": REQUIRED, "floor": 0.0, "horizon": "end"},
        ),
    },
    "optimizer": {
        **_members(
            "dst.training.optimizer",
            sgd={"momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
            adamw={"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
        ),
    },
    "lr": {
        **_members(
            "dst.training.lr",
            constant={},
            cosine={"floor": 0.0},
            multistep={"milestones": REQUIRED, "gamma": 0.1},
        ),
    },
}
