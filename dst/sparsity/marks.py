"""Marks on the parts of a method: what the rest of the system must know about a part without calling it.

``dst.registry`` reads them from the source, so that a config is checked without importing torch.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

Mark = Literal[
    "dense_gradient",
    "momentum",
    "after_drop",
    "cuts",
    "data",
    "own_counts",
    "ranks",
    "names",
    "structured",
    "units",
    "free_form",
    "fixes_first",
    "fixes_last",
    "snapshot",
    "cycles",
    "levels",
    "ages",
    "coupled",
    "decoupled",
    "target",
    "outcome",
    "anneals",
]
"""What a mark says.

``dense_gradient``: a grow score that reads dense gradients; others do not get them. ``momentum``: reads the moving
average of dense gradients, so needs these at every step. ``after_drop``: a grow score that must know which weights have
left, and sees no dense gradients. ``cuts``: a drop score that makes all weights leave whose score is negative, however
many. ``data``: looks at training batches. ``own_counts``: decides itself how many weights are kept, without a density.
``ranks``: a criterion that ranks all weights of a network. ``names``: a distribution that is given the layers by name.
``structured``: a pattern that keeps quotas. ``units``: works on output units, and takes the first dimension of a weight
for them. ``free_form``: an init whose masks follow no pattern. ``fixes_first``, ``fixes_last``: a distribution that
gives the first or the last layer a density of its own.
``snapshot``: a correction that compares an epoch's batches at the weights and at a snapshot of them. ``cycles``: a
procedure that ends with cycles, of whose networks it makes the last one itself. ``levels``: a procedure that prunes
level by level to a density of its own, how often being up to the first masks. ``ages``: an optimizer that corrects
moments by their age, as Adam's. ``coupled``: one whose weight decay is a part of the gradient, which momentum carries
on; ``decoupled``: one that takes the rate times the decay off a weight at each step. ``target``: learned masks whose
density is an option of their own. ``outcome``: learned masks whose density is an outcome of training. ``anneals``: a
procedure that sets the density of learned masks.
"""

_F = TypeVar("_F", bound=Callable[..., Any])


def marked(*marks: Mark) -> Callable[[_F], _F]:
    """Mark a part."""

    def mark(part: _F) -> _F:
        part.marks = frozenset(marks)  # type: ignore[attr-defined]
        return part

    return mark


def marks_of(part: Any) -> frozenset[Mark]:
    """Return the marks of a part, also if ``functools.partial`` has bound options to it."""
    found: frozenset[Mark] = getattr(getattr(part, "func", part), "marks", frozenset())
    return found
