"""What to do about a run that is not done, and about a seed that was never run: a sentence and a command."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from analysis.report.gather import Run
from dst.records.entries import in_folder
from dst.records.states import State


class Mend(NamedTuple):
    """A sentence that says what to do, and the command that does it, if one does."""

    advice: str
    command: str | None = None


def _again(run: Run) -> Mend:
    if run.is_job:
        return Mend("Submit it again; it continues from its newest checkpoint.", _launcher("requeue", run))
    return Mend("Give its command again; what is done is skipped.", in_folder(run.command, run.cwd))


def _stopped(run: Run) -> Mend:
    mend = _again(run)
    return mend._replace(command=f"{mend.command} --preempted") if run.is_job else mend


def _watch(run: Run) -> Mend:
    return Mend("It is under way: make the report again later.", _launcher("status", run))


_MENDS: Final[Mapping[State, Callable[[Run], Mend]]] = {
    **dict.fromkeys((State.FAILED, State.LOST, State.NOT_SUBMITTED), _again),
    **dict.fromkeys((State.PREEMPTED, State.CANCELLED), _stopped),
    **dict.fromkeys((State.SUBMITTING, State.QUEUED, State.RUNNING), _watch),
    State.DIVERGED: lambda _: Mend(
        "It would diverge again: change what it does, for example a smaller schedule.lr.peak or schedule.clip_norm."
    ),
    State.UNREADABLE: lambda _: Mend("Restore its folder from a copy, or remove it and give its command again."),
    State.MISSING: lambda _: Mend("Restore its folder, or give the command that the reason names."),
    State.UNKNOWN: lambda run: Mend("Give its command again.", in_folder(run.command, run.cwd)),
    State.DONE: lambda run: Mend(
        "It ended without a test accuracy: give its command again.", in_folder(run.command, run.cwd)
    ),
}


def mend(run: Run) -> Mend:
    """Return what to do about a run that has no result."""
    return _MENDS[run.state](run)


def for_seeds(run: Run, seeds: Iterable[int]) -> Mend:
    """Return how to run seeds that a run's experiment lacks."""
    if run.command is None:
        return Mend("No command is on record for this row.")
    given = ",".join(map(str, seeds))
    return Mend(
        "Run these seeds; cells that are done are skipped.", in_folder(_with_seeds(run.command, given), run.cwd)
    )


def _with_seeds(command: str, seeds: str) -> str:
    """Return a command with other seeds, as a sweep if there are several."""
    try:
        words = shlex.split(command)
    except ValueError:  # no shell would take it
        return command
    words = [word for word in words if not word.startswith("seed=")]
    if "," in seeds and not {"-m", "--multirun"} & set(words):
        words.insert(words.index("run.py") + 1 if "run.py" in words else len(words), "-m")
    return shlex.join([*words, f"seed={seeds}"])


def _launcher(name: str, run: Run) -> str:
    return f"python -m dst.launcher.{name} {shlex.quote(run.folder)}"
