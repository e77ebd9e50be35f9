"""The states of a run, the groups that they form, and the exit code that a process ends with for each.

Every state is text, so that JSON and tables hold it as it is. YAML does not: states never enter a config.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """What a run can be. Its own ``status.json`` says one of ``RECORDED``; the others are seen from outside only."""

    SUBMITTING = "submitting"
    """A command has frozen it and is about to hand it over to a job."""
    NOT_SUBMITTED = "not submitted"
    """The command that froze it ended before a job had it."""
    QUEUED = "queued"
    RUNNING = "running"
    PREEMPTED = "preempted"
    """Stopped on request; it continues from its newest checkpoint."""
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"
    """Its job was cancelled while the run waited for it."""

    LOST = "lost"
    """Recorded as queued or running, but no job and no process carries it out."""
    UNKNOWN = "unknown"
    """It has a record without a status."""
    UNREADABLE = "unreadable"
    """Its record is damaged."""
    MISSING = "missing"
    """It is not where its group says it is."""
    NEW = "new"
    """There is no record of it yet, or a command leaves the one there is alone."""
    REFUSED = "refused"
    """Its config is invalid, or it cannot be continued as it was begun."""
    NOT_STARTED = "not started"
    """The sweep was stopped before its turn came."""
    KILLED = "killed"
    """wandb's word for a run that is still recorded as running when its record is sent."""

    @property
    def exit_code(self) -> int:
        """The exit code of a process whose run ended in this state; that of a failure if the state is no end."""
        return _EXIT_CODES.get(self, _EXIT_CODES[State.FAILED])


RECORDED: Final = (
    State.SUBMITTING,
    State.NOT_SUBMITTED,
    State.QUEUED,
    State.RUNNING,
    State.PREEMPTED,
    State.DONE,
    State.FAILED,
    State.DIVERGED,
    State.CANCELLED,
)
"""What ``status.json`` may say."""

OBSERVED: Final = (*RECORDED, State.LOST, State.UNKNOWN, State.UNREADABLE, State.MISSING)
"""What ``dst.launcher.status`` may show."""

ENDED: Final = frozenset({State.DONE, State.FAILED, State.DIVERGED})
"""What a run's own process records last; a new attempt needs a new submission."""

UNFINISHED: Final = tuple(state for state in RECORDED if state not in ENDED)
"""All other recorded states."""

OVER: Final = frozenset({State.DONE, State.DIVERGED})
"""Training such a run again would change nothing."""

REQUEUED: Final = (State.FAILED, State.NOT_SUBMITTED, State.LOST)
"""``requeue`` submits these again."""

STOPPED: Final = (State.PREEMPTED, State.CANCELLED)
"""``requeue --preempted`` submits these again, too."""

WITHOUT_RECORD: Final = (State.UNREADABLE, State.MISSING)
"""The record of such a run cannot be read."""

_EXIT_CODES: Final = {
    State.DONE: 0,
    State.FAILED: 1,
    State.REFUSED: 2,
    State.DIVERGED: 3,
    State.PREEMPTED: 75,
    State.CANCELLED: 75,
}

_WORST_FIRST: Final = tuple(state.exit_code for state in (State.FAILED, State.REFUSED, State.DIVERGED, State.PREEMPTED))


def worst(codes: Iterable[int]) -> int:
    """Return the worst of exit codes; 0 if there is none."""
    found = set(codes) - {0}
    return next((code for code in _WORST_FIRST if code in found), max(found, default=0))
