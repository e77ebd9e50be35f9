"""Submit failed and lost runs again, unchanged: ``python -m dst.launcher.requeue DIR``."""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from dst.config.launcher import LauncherSettings
from dst.config.schema import ConfigError
from dst.launcher.arguments import command, folders_below
from dst.launcher.declined import by_hand, used_up
from dst.launcher.executors import SubmissionError
from dst.launcher.frozen import read_frozen, submitted_code
from dst.launcher.observe import Observed, observe
from dst.launcher.older import is_of_other_schema, own_code, requeue_by_own_code
from dst.launcher.request import Run
from dst.launcher.submit import Submitted, submit_again, superseded
from dst.records.read import read_launch
from dst.records.states import REQUEUED, STOPPED, State, worst
from dst.records.store import RecordError
from dst.run.terminal import program

_DESCRIPTION = """\
Submit the runs below DIR again that failed, were lost, or were not taken by the cluster. They continue from their
newest checkpoint, with the same config and code (outputs/.code), on the same cluster. No config file is read. Runs of
an older schema are submitted by their own code. Diverged runs would diverge again and are left alone; so are, and are
listed, those that were started by hand, with the command to give, and those whose job was requeued as often as it
may (hardware.slurm.max_requeues), unless --force is given. The exit code is 1 if there are any."""


def main(arguments: Sequence[str]) -> int:
    """Submit again, and print which runs; return the exit code."""
    parser = command("requeue", _DESCRIPTION)
    parser.add_argument("--preempted", action="store_true", help="also those that were stopped or cancelled")
    parser.add_argument("--force", action="store_true", help="also those whose job was requeued as often as it may")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be submitted")
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    states = (*REQUEUED, *STOPPED) if options.preempted or options.force else REQUEUED
    observed = observe(folders)
    damaged = [run for run in observed if run.state == State.UNREADABLE]
    codes = [_tell(RecordError(f"{run.folder} is left alone: {run.why}")) for run in damaged]
    wanted, declined = _wanted(observed, options, codes)
    taken: list[Path] = []
    same_schema, more = _leave_to_own_code(wanted, options)
    codes += more
    for how, runs in _alike(same_schema, codes).items():
        try:
            taken += _submit(how, runs, states, codes, dry_run=options.dry_run)
        except (SubmissionError, ConfigError, RecordError, OSError) as error:
            codes.append(_tell(error))
    if options.dry_run:
        print("\n".join([*map(str, taken), f"{len(taken)} runs would be submitted"]))
    elif not wanted and not declined:
        print("nothing to submit: no run below that folder has failed or was lost")
    return worst(codes)


def _wanted(
    observed: Sequence[Observed], options: argparse.Namespace, codes: list[int]
) -> tuple[list[Path], list[Path]]:
    """Return the runs to submit, and those that are not, which it names; add exit codes for these."""
    states = (*REQUEUED, *STOPPED) if options.preempted else REQUEUED
    wanted, declined = [], []
    for run in observed:
        try:
            exhausted = used_up(run)
            is_wanted = exhausted is not None or (run.state in states and not run.is_taken)
            told = (by_hand(run) if is_wanted else None) or (None if options.force else exhausted)
        except (RecordError, OSError) as error:
            codes.append(_tell(error))
            continue
        if told is not None:
            print(told, file=sys.stderr)
            codes.append(State.FAILED.exit_code)
            declined.append(Path(run.folder))
        elif is_wanted:
            wanted.append(Path(run.folder))
    return wanted, declined


_How = tuple[str, LauncherSettings, Path]
"""How runs were submitted: from which working folder, with which settings, and with which frozen code."""


def _alike(folders: Sequence[Path], codes: list[int]) -> dict[_How, dict[Path, Run]]:
    """Return the frozen runs in these folders by how they were submitted; add an exit code for each unreadable one."""
    groups: dict[_How, dict[Path, Run]] = defaultdict(dict)
    for folder in folders:
        try:
            groups[_submitted(folder)][folder] = read_frozen(folder)
        except (ConfigError, RecordError, OSError) as error:
            codes.append(_tell(error))
    return groups


def _submit(
    how: _How, runs: Mapping[Path, Run], states: Sequence[State], codes: list[int], *, dry_run: bool
) -> list[Path]:
    """Submit runs again as they were submitted before, unless ``dry_run``, and add the exit code; return their folders.

    Runs that have another attempt which is newer or under way are left alone.
    """
    cwd, settings, code = how
    there = {folder.resolve(): run for folder, run in runs.items()}
    with chdir(cwd):  # folders in a config are relative to where it was submitted
        others = superseded(there)
        for folder, other in others.items():
            print(f"left alone, since {other} is another attempt at it that is newer or goes on: {folder}")
        there = {folder: run for folder, run in there.items() if folder not in others}
        if there and not dry_run:
            codes.append(_report(submit_again(there, settings, states, code)))
    return [folder for folder in runs if folder.resolve() in there]


def _leave_to_own_code(folders: Sequence[Path], options: argparse.Namespace) -> tuple[list[Path], list[int]]:
    """Let runs of another schema be submitted by their own code; return the other runs, and exit codes."""
    others, codes = [], []
    older: dict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        try:
            if is_of_other_schema(folder):
                older[own_code(folder)].append(folder)
            else:
                others.append(folder)
        except (ConfigError, RecordError, OSError) as error:
            codes.append(_tell(error))
    given = [  # it knows no --force, and holds nothing back
        *(["--preempted"] if options.preempted or options.force else []),
        *(["--dry-run"] if options.dry_run else []),
    ]
    for code, runs in older.items():
        try:
            codes.append(requeue_by_own_code(runs, code, given))
        except (ConfigError, OSError) as error:
            codes.append(_tell(error))
    return others, codes


def _submitted(folder: Path) -> _How:
    """Return from where, how, and with which code a run was submitted."""
    launch = read_launch(folder) or {}
    settings = _settings(launch)
    if settings is None:
        raise RecordError(f"{folder}/launch.json does not say how it was submitted: run its command again")
    return str(launch.get("cwd", os.getcwd())), settings, submitted_code(folder)


def _report(submitted: Submitted) -> int:
    """Print what was submitted and what was not; return the exit code."""
    if submitted.submission is not None:
        jobs = ", ".join(submitted.submission.jobs)
        print(f"{len(submitted.submitted)} runs submitted as job {jobs}; logs in {submitted.submission.logs}")
    if submitted.left:
        print(submitted.told(), file=sys.stderr)
    return State.REFUSED.exit_code if submitted.left else 0


def _tell(error: Exception) -> int:
    """Print what went wrong; return the exit code."""
    if isinstance(error, ConfigError):
        print(f"error: {error.text()}", file=sys.stderr)
        return State.REFUSED.exit_code
    print(f"error: {error}", file=sys.stderr)
    return State.FAILED.exit_code


def _settings(launch: Mapping[str, Any]) -> LauncherSettings | None:
    """Return how a run was submitted; None if its record does not say so, or says what cannot be."""
    try:
        settings = LauncherSettings(**launch["settings"])
    except (KeyError, TypeError):
        return None
    return None if settings.problems() else settings


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
