"""Runs that ``requeue`` does not submit by itself, and what it says of them: a person has to decide."""

from pathlib import Path
from typing import Final

from dst.launcher.observe import Observed
from dst.launcher.older import is_of_other_schema
from dst.records.entries import in_folder
from dst.records.read import read_attempts, read_launch, read_run
from dst.records.states import State

_BY_THE_CLUSTER: Final = ("time limit", "preemption")
"""How the causes of stops begin after which a job is put back into the queue."""


def by_hand(run: Observed) -> str | None:
    """Return how to go on with a run that was never submitted as a job; None if it was.

    None also for one of another schema: its command would begin a new run.
    """
    folder = Path(run.folder)
    if read_launch(folder) is not None or is_of_other_schema(folder):
        return None
    about, what = read_run(folder), f"{run.state}: {folder} was not submitted as a job"
    if "command" not in about:
        return f"{what}; give its command again"
    return f"{what}; its command goes on with it:\n  {in_folder(about['command'], about.get('cwd'))}"


def used_up(run: Observed) -> str | None:
    """Return what is said of a run that its job has begun as often as it may; None if that does not keep it back."""
    if run.state not in (State.PREEMPTED, State.LOST) or run.is_taken or run.cluster != "slurm":
        return None
    folder = Path(run.folder)
    limit = read_run(folder).get("config", {}).get("hardware.slurm.max_requeues")
    attempts = [attempt for attempt in read_attempts(folder) if attempt.get("job") == run.job]
    if type(limit) is not int or len(attempts) <= limit:
        return None
    is_stopped = run.state == State.PREEMPTED and str(attempts[-1].get("cause")).startswith(_BY_THE_CLUSTER)
    is_killed = run.state == State.LOST and len(attempts) > 1
    if not (is_stopped or is_killed):
        return None
    again = f"its job was requeued {len(attempts) - 1} times (hardware.slurm.max_requeues={limit})"
    return f"{run.state}: {folder} is left alone: {again}; --force submits it"
