"""Stop jobs: ``python -m dst.launcher.cancel DIR``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dst.launcher import slurm
from dst.launcher.arguments import command, folders_below
from dst.launcher.local import mark_cancelled, stop_job, stop_run
from dst.launcher.observe import Observed, observe
from dst.records.states import State
from dst.records.store import RecordError
from dst.run.terminal import program

_DESCRIPTION = """\
Cancel the runs below DIR that are queued or running as jobs. A running one saves and stops; the command that submitted
it continues it later. Of a sweep on this machine only the runs below DIR stop; those that share a job of SLURM stop
together, and it is said before how many more that may be (--dry-run says it, too). Runs that were started by hand are
left alone: stop those with Ctrl-C."""


def main(arguments: Sequence[str]) -> int:
    """Cancel jobs and print what was cancelled; return the exit code."""
    parser = command("cancel", _DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="only say what would stop")
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    observed = observe(folders)
    alive = [run for run in observed if run.is_taken]
    with_job = [run for run in alive if run.has_job]
    if neighbours := _neighbours(with_job, observed):
        print(f"with them stop up to {neighbours} runs elsewhere, which share their jobs", flush=True)
    if any(_is_part(run, observed) for run in with_job):
        print("other runs of their jobs, if any, go on", flush=True)
    problems = {} if options.dry_run else _stop(with_job, observed)
    _tell_left_alone(alive)
    stopped = [run for run in with_job if run.folder not in problems]
    jobs = len({_job(run) for run in stopped})
    if options.dry_run:
        print("\n".join([*(run.folder for run in stopped), f"{jobs} jobs of {len(stopped)} runs would be cancelled"]))
    else:
        print(f"cancelled {jobs} jobs of {len(stopped)} runs")
    for problem in dict.fromkeys(problems.values()):
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _neighbours(runs: Sequence[Observed], observed: Sequence[Observed]) -> int:
    """Return how many runs elsewhere, at most, share SLURM jobs with these, and stop with them."""
    return sum(max(0, run.job_runs - _sharing(run, observed)) for run in _one_of_each(runs) if run.cluster == "slurm")


def _job(run: Observed) -> tuple[str | None, ...]:
    """Return by what the job of a run is known; on one machine, by its process."""
    return run.cluster, run.job, run.host if run.cluster == "local" else None


def _sharing(run: Observed, runs: Sequence[Observed]) -> int:
    """Return how many of these runs have the job of a run."""
    return sum(_job(other) == _job(run) for other in runs)


def _is_part(run: Observed, observed: Sequence[Observed]) -> bool:
    """Say whether a run shares its job on one machine with others that are to go on."""
    return run.cluster == "local" and _sharing(run, observed) < run.job_runs


def _stop(runs: Sequence[Observed], observed: Sequence[Observed]) -> dict[str, str]:
    """Stop runs that have a job; return, by folder, why one could not be stopped."""
    on_slurm = [run for run in runs if run.cluster == "slurm"]
    refused = slurm.cancel({run.job for run in on_slurm if run.job is not None}) if on_slurm else {}
    problems = {run.folder: refused[run.job] for run in on_slurm if run.job in refused}
    whole = [run for run in runs if run.cluster == "local" and not _is_part(run, observed)]
    why = {_job(run): stop_job(Path(run.folder)) for run in _one_of_each(whole)}
    problems |= {run.folder: told for run in whole if (told := why[_job(run)]) is not None}
    for run in runs:
        if _is_part(run, observed) and (told := stop_run(Path(run.folder))) is not None:
            problems[run.folder] = told
    for run in [*on_slurm, *whole]:
        if run.folder not in problems and run.state in (State.QUEUED, State.PREEMPTED):
            _mark(run)
    return problems


def _one_of_each(runs: Sequence[Observed]) -> list[Observed]:
    """Return one run of each job."""
    return list({_job(run): run for run in runs}.values())


def _mark(run: Observed) -> None:
    """Record that a run was cancelled while it waited for its job, unless it has begun meanwhile."""
    try:
        mark_cancelled(Path(run.folder))
    except (OSError, RecordError) as error:
        print(f"warning: {run.folder} was cancelled, but its status could not be written: {error}", file=sys.stderr)


def _tell_left_alone(alive: Sequence[Observed]) -> None:
    for run in alive:
        if run.state == State.SUBMITTING:
            print(f"left alone, since another command is submitting it (stop that with Ctrl-C): {run.folder}")
        elif not run.has_job:
            print(f"left alone, since no job carries it out: {run.folder}")


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
