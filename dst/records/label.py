"""The name of a method as people read it: its label, and what was changed in it."""

from collections.abc import Mapping
from typing import Any, Final

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
