"""The names of a method and of what wraps it as people read them, with what was changed in them."""

from collections.abc import Mapping
from typing import Any, Final

from dst.options import shown

LABEL: Final = "sparsity.label"
"""The key of a method's label; also what ``changed`` has where a user gave the label."""


def labelled(label: str, changed: Mapping[str, Any]) -> str:
    """Return the label of a method followed by what was changed in it, e.g. ``rigl grow=random``.

    ``changed``: dotted key -> value. A label that a user gave stands alone.
    """
    if LABEL in changed:
        return label
    changes = (f"{key.removeprefix('sparsity.').removesuffix('.name')}={value}" for key, value in changed.items())
    return " ".join([label, *changes])


def method_of(run: Mapping[str, Any]) -> str | None:
    """Return the method of a run as ``run.json`` tells it, None if that names none.

    Records of schema 1 have what was changed in their label.
    """
    label = run.get("config", {}).get(LABEL)
    return None if label is None else labelled(str(label), run.get("changed", {}))


WRAPPERS: Final = {"correction": "none", "procedure": "single"}
"""What wraps a method -> the choice that leaves it as it is; records from before there were others do not name it."""


def wrapper(kind: str, identity: Mapping[str, Any]) -> str:
    """Return the choice of this kind in the identity of a run, and its options: ``agent(alpha=0.5, gamma=0.2)``.

    Options that have their default are in no identity.
    """
    found = {key.removeprefix(f"{kind}."): value for key, value in identity.items() if key.startswith(f"{kind}.")}
    name = found.pop("name", WRAPPERS[kind])
    options = ", ".join(f"{option}={shown(value)}" for option, value in sorted(found.items()))
    return f"{name}({options})" if options else name


def wrappers_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return what wraps the method of a run, by kind, as ``wrapper`` names it; empty if nothing does."""
    found = {kind: wrapper(kind, identity) for kind in WRAPPERS}
    return {kind: told for kind, told in found.items() if told != WRAPPERS[kind]}
