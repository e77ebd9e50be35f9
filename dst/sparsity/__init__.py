"""The core: sparse networks whose topology changes while they train, for any PyTorch loop.

A method is a composition of small parts: a distribution (how much where), an init (which positions first), a pattern
(which masks are allowed), drop and grow scores (who leaves, who enters), curves and a plan (how much, when).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dst.sparsity.plan import UpdatePlan
    from dst.sparsity.scope import Scope
    from dst.sparsity.sparsifier import Sparsifier

__all__ = ["Scope", "Sparsifier", "UpdatePlan"]

_WHERE = {"Scope": "scope", "Sparsifier": "sparsifier", "UpdatePlan": "plan"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that what needs no torch does not wait for it."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
