"""Stop jobs: ``python -m dst.launcher.cancel DIR``."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dst.launcher import slurm
from dst.launcher.arguments import command, folders_below
from dst.launcher.observe import Observed, observe, process_lives
from dst.records.lock import this_host
from dst.records.read import read_launch
from dst.records.restate import restate
from dst.records.states import State
from dst.records.store import RecordError
from dst.run.terminal import program

_DESCRIPTION = """\
Cancel the jobs of all runs below DIR that are queued or running. A running one saves and stops; the command that
submitted it continues it later. Runs that share a job stop together. Runs that were started by hand are left alone:
stop those with Ctrl-C."""


def main(arguments: Sequence[str]) -> int:
    """Cancel jobs and print what was cancelled; return the exit code."""
    parser = command("cancel", _DESCRIPTION)
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    alive = [run for run in observe(folders) if run.is_taken]
    with_job = [run for run in alive if run.has_job]
    problems = {run.job: problem for run in _by_job(with_job, "local") if (problem := _cancel_local(run))}
    if refused := _cancel_slurm(with_job):
        problems |= dict.fromkeys((run.job for run in _by_job(with_job, "slurm")), refused)
    cancelled = [run for run in with_job if run.job not in problems]
    for run in cancelled:
        if run.state in (State.QUEUED, State.PREEMPTED):
            _mark_cancelled(Path(run.folder))
    if neighbours := _neighbours(cancelled):
        print(f"with them stop up to {neighbours} runs elsewhere, which share their jobs")
    for run in alive:
        if run.state == State.SUBMITTING:
            print(f"left alone, since another command is submitting it (stop that with Ctrl-C): {run.folder}")
        elif not run.has_job:
            print(f"left alone, since no job carries it out: {run.folder}")
    print(f"cancelled {len({run.job for run in cancelled})} jobs of {len(cancelled)} runs")
    for problem in dict.fromkeys(problems.values()):
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _by_job(runs: Sequence[Observed], cluster: str) -> list[Observed]:
    """Return one run of each job on a cluster."""
    return list({run.job: run for run in runs if run.cluster == cluster}.values())


def _cancel_slurm(runs: Sequence[Observed]) -> str | None:
    jobs = [run.job for run in _by_job(runs, "slurm") if run.job is not None]
    return slurm.cancel(jobs) if jobs else None


def _cancel_local(run: Observed) -> str | None:
    launch = read_launch(Path(run.folder)) or {}
    if launch.get("host") != this_host():
        return f"job {run.job} runs on host {launch.get('host')}: cancel it there"
    try:
        if process_lives(launch):  # otherwise it has ended, and its number may belong to another process
            os.kill(int(launch["job"]), signal.SIGTERM)
    except OSError as error:
        return f"job {run.job} cannot be cancelled: {error}"
    return None


def _neighbours(runs: Sequence[Observed]) -> int:
    """Return how many other runs, at most, share the jobs of these runs."""
    shares = {run.job: (read_launch(Path(run.folder)) or {}).get("runs", 1) for run in runs if run.job is not None}
    return sum(count - sum(run.job == job for run in runs) for job, count in shares.items())


def _mark_cancelled(folder: Path) -> None:
    """Record that a run was cancelled while it waited for its job, unless it has begun meanwhile."""
    # A run that was killed and whose job waits again is still recorded as running.
    waiting = (State.QUEUED, State.PREEMPTED, State.RUNNING)
    try:
        told = "cancelled while it was queued; run the same command to submit it again"
        restate(folder, State.CANCELLED, told, among=waiting)
    except (OSError, RecordError) as error:
        print(f"warning: {folder} was cancelled, but its status could not be written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
