"""The state of all runs below a folder: ``python -m dst.launcher.status DIR``."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from dst.launcher.arguments import command, notes_on, runs_below
from dst.launcher.observe import NO_ANSWER, Observed, observe
from dst.records.groups import GroupRun
from dst.records.lock import this_host
from dst.records.states import OBSERVED, State
from dst.run import given
from dst.run.report import duration, table
from dst.run.terminal import lost, program
from dst.words import one_line

_DESCRIPTION = """\
Show the runs below DIR: state, attempt, step, time to go, accuracies, job, and why a run failed.

The states are those of the records: submitting (a command has frozen the run and is about to hand it over), not
submitted (that command ended before), queued, running, preempted, done, failed, diverged, cancelled (while it was
queued). A run is 'lost' if it is recorded as queued or running but no job and no process carries it out any more. If
there is SLURM, its own word is shown beside the state.
A group also holds the runs that its sweeps found under another group. Such a run is 'missing' if it is gone."""

SILENT: Final = (
    "SLURM cannot be asked from here (squeue): whether its jobs live is not known, and the states are those on record"
)

_HOME_AND_CLEAR = "\033[H\033[2J"


def main(arguments: Sequence[str]) -> int:
    """Print the table once, or again and again; return the exit code."""
    parser = command("status", _DESCRIPTION)
    parser.add_argument(
        "--watch", type=given.seconds, metavar="SECONDS", help="show it again at this interval until all runs are over"
    )
    parser.add_argument(
        "--state",
        action="append",
        metavar="STATE",
        choices=[state.value for state in OBSERVED],
        help="only runs in this state; may be given more than once",
    )
    parser.add_argument("--json", action="store_true", help="print all fields, as JSON")
    options = parser.parse_args(arguments)
    while True:
        found = runs_below(options.dir)
        if found is None:
            return 2
        observed = [*observe([run.folder for run in found if run.state is None]), *map(_lacking, found)]
        runs = [run for run in observed if run and (not options.state or run.state in options.state)]
        runs.sort(key=lambda run: (str(Path(run.folder).parent), run.created or ""))  # in the order of their sweep
        text = json.dumps([asdict(run) for run in runs], indent=2) if options.json else show(runs, found)
        if options.json and any(run.slurm == NO_ANSWER for run in runs):
            print(SILENT, file=sys.stderr)
        print((_HOME_AND_CLEAR if options.watch and sys.stdout.isatty() else "") + text, flush=True)
        if not options.watch or lost() or not any(run.is_taken for run in runs):
            return 0
        time.sleep(options.watch)


def show(runs: Sequence[Observed], found: Sequence[GroupRun] = ()) -> str:
    """Return the table, one line for each run, and how many runs are in each state.

    ``found``: the same runs as they were found, of which the table says which were renamed and which have copies.
    """
    with_slurm = any(run.slurm for run in runs)
    header = [
        "run",
        "id",
        "state",
        *(["SLURM"] if with_slurm else []),
        "attempt",
        "step",
        "to go",
        "val accuracy",
        "test accuracy",
        "job",
    ]
    rows = [_row(run, with_slurm=with_slurm) for run in runs]
    counts = Counter(run.state for run in runs)
    told = [f"  {_called(run)} {run.state}{_where(run)}: {run.why}" for run in runs if run.why]
    shown = {run.folder for run in runs}
    told += [f"  {note}" for note in notes_on(run for run in found if str(run.folder) in shown)]
    told += [SILENT] if any(run.slurm == NO_ANSWER for run in runs) else []
    total = f"{len(runs)} runs: " + (", ".join(f"{count} {state}" for state, count in counts.most_common()) or "none")
    return "\n".join([*([table(header, rows)] if rows else []), *told, total])


def _lacking(run: GroupRun) -> Observed | None:
    """Return the observation of a run that is not where its group says; None if it is there."""
    if run.state is None:
        return None
    return Observed(str(run.folder), run.name or run.id, run.state, attempt=0, step=0, why=run.why)


def _where(run: Observed) -> str:
    """Return where a run failed, if it was on another machine: what it found there may be the reason."""
    return f" on {run.host}" if run.state == State.FAILED and run.host not in (None, this_host()) else ""


def _slurm(run: Observed) -> str:
    """Return SLURM's word for the state of a job, and for what it waits."""
    return (run.slurm or "-") + (f" ({run.reason})" if run.reason else "")


def _called(run: Observed) -> str:
    return one_line(Path(run.folder).name)


def _row(run: Observed, *, with_slurm: bool) -> list[str]:
    return [
        one_line(run.name),
        _called(run),
        run.state,
        *([_slurm(run)] if with_slurm else []),
        str(run.attempt),
        f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
        "-" if run.eta_s is None else duration(run.eta_s),
        *("-" if figure is None else f"{figure:.4f}" for figure in (run.val_accuracy, run.test_accuracy)),
        run.job or "-",
    ]


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
