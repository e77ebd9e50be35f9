"""Stop jobs: ``python -m dst.launcher.cancel DIR``."""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dst.launcher import slurm
from dst.launcher.arguments import command, folders_below
from dst.launcher.seen import Seen, look
from dst.records.lock import holder
from dst.records.read import read_launch, read_status
from dst.records.store import Record
from dst.terminal import program

_DESCRIPTION = """\
Cancel the jobs of all runs below DIR that are queued or running. A running one saves and stops; the command that
submitted it continues it later. Runs that share a job stop together. Runs that were started by hand are left alone:
stop those with Ctrl-C."""


def main(arguments: Sequence[str]) -> int:
    """Cancel, and say what was cancelled; return the exit code."""
    parser = command("cancel", _DESCRIPTION)
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    alive = [run for run in look(folders) if run.is_taken]
    by_hand = [run for run in alive if run.job is None]
    jobs = sorted({(run.cluster, run.job) for run in alive if run.job is not None and run.cluster is not None})
    problems = [_cancel_slurm([job for cluster, job in jobs if cluster == "slurm"])]
    problems += [_cancel_local(run) for run in {run.job: run for run in alive if run.cluster == "local"}.values()]
    for run in alive:
        if run.state in ("queued", "preempted") and run.job is not None:
            _mark_cancelled(Path(run.folder))
    with_them = _neighbours(alive)
    if with_them:
        print(f"with them stop up to {with_them} runs elsewhere, which share their jobs")
    for run in by_hand:
        print(f"left alone, since no job carries it out: {run.folder}")
    print(f"cancelled {len(jobs)} jobs of {len(alive) - len(by_hand)} runs")
    told = [problem for problem in problems if problem]
    for problem in told:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if told else 0


def _cancel_slurm(jobs: list[str]) -> str | None:
    return slurm.cancel(jobs) if jobs else None


def _cancel_local(run: Seen) -> str | None:
    launch = read_launch(Path(run.folder)) or {}
    if launch.get("host") != socket.gethostname():
        return f"job {run.job} runs on host {launch.get('host')}: cancel it there"
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(int(launch["job"]), signal.SIGTERM)
    return None


def _neighbours(runs: Sequence[Seen]) -> int:
    """Return how many other runs, at most, the jobs of these runs were submitted with."""
    shares = {run.job: (read_launch(Path(run.folder)) or {}).get("runs", 1) for run in runs if run.job is not None}
    return sum(count - sum(run.job == job for run in runs) for job, count in shares.items())


def _mark_cancelled(folder: Path) -> None:
    """Put on record that a run was cancelled while it waited for its job, unless it has begun meanwhile."""
    status = read_status(folder) or {}
    if status.get("state") in ("queued", "preempted") and holder(folder) is None:
        Record.open(folder).write_status(
            "preempted",
            attempt=status.get("attempt", 0),
            step=status.get("step", 0),
            total_steps=status.get("total_steps"),
            error="cancelled while it was queued; run the same command to submit it again",
        )


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
