"""The states of a run, and what a process says by its exit code of the one that a run or a cell ended in."""

from collections.abc import Iterable
from typing import Final

STATES: Final = (
    "submitting",
    "not submitted",
    "queued",
    "running",
    "preempted",
    "done",
    "failed",
    "diverged",
    "cancelled",
)
"""What a run can be, as its ``status.json`` says. ``submitting``: a command has frozen it and is about to hand it over
to a job; ``not submitted``: that command ended before it did; ``cancelled``: while it waited for its job."""

LOST: Final = "lost"
"""What a run is, and cannot say itself: recorded as queued or running while no job and no process carries it out."""

EXIT_CODES: Final = {"done": 0, "failed": 1, "refused": 2, "diverged": 3, "preempted": 75, "cancelled": 75}
"""Exit code by state; ``refused``: it could not be continued as it was begun, or its config is invalid."""

ENDED: Final = frozenset({"done", "failed", "diverged"})
"""States that a run's own process gives it last; a new attempt needs a new submission."""

_WORST_FIRST: Final = (1, 2, 3, 75)


def worst(codes: Iterable[int]) -> int:
    """Return the worst of exit codes; 0 if there is none."""
    found = set(codes) - {0}
    return next((code for code in _WORST_FIRST if code in found), max(found, default=0))
