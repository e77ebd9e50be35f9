"""The states that a run or a cell can end in, and what a process says of them by its exit code."""

from collections.abc import Iterable
from typing import Final

EXIT_CODES: Final = {"done": 0, "failed": 1, "refused": 2, "diverged": 3, "preempted": 75}
"""Exit code by state; ``refused``: it could not be continued as it was begun, or its config is invalid."""

ENDED: Final = frozenset({"done", "failed", "diverged"})
"""States that a run's own process gives it last; a new attempt needs a new submission."""

_WORST_FIRST: Final = (1, 2, 3, 75)


def worst(codes: Iterable[int]) -> int:
    """Return the worst of exit codes; 0 if there is none."""
    found = set(codes) - {0}
    return next((code for code in _WORST_FIRST if code in found), max(found, default=0))
