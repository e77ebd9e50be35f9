"""Submit failed and lost runs again, as they were: ``python -m dst.launcher.requeue DIR``."""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, get_args

from dst.config.launcher import Cluster, LauncherSettings
from dst.config.schema import ConfigError
from dst.launcher.arguments import command, folders_below
from dst.launcher.executors import Run, SubmissionError
from dst.launcher.frozen import read_frozen, submitted_code
from dst.launcher.observe import UNREADABLE, observe
from dst.launcher.older import is_of_other_schema, own_code, requeue_by_own_code
from dst.launcher.submit import REQUEUED, STOPPED, Submitted, submit_again, superseded
from dst.records.read import read_launch
from dst.records.states import EXIT_CODES, worst
from dst.records.store import RecordError
from dst.run.terminal import program

_DESCRIPTION = """\
Submit the runs below DIR that failed, were lost, or were not taken by the cluster again, from their newest checkpoint,
with the config, the code (outputs/.code) and to the cluster that they were submitted with. No config file is read.
Those of an older schema are submitted by that code itself.
Diverged runs would diverge again and are left alone."""


def main(arguments: Sequence[str]) -> int:
    """Submit again, and say what; return the exit code."""
    parser = command("requeue", _DESCRIPTION)
    parser.add_argument("--preempted", action="store_true", help="also those that were stopped or cancelled")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be submitted")
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    states = (*REQUEUED, *STOPPED) if options.preempted else REQUEUED
    seen = observe(folders)
    wanted = [Path(run.folder) for run in seen if run.state in states and not run.is_taken]
    groups: dict[tuple[str, LauncherSettings, Path], dict[Path, Run]] = defaultdict(dict)
    codes = [_tell(RecordError(f"{run.folder} is left alone: {run.why}")) for run in seen if run.state == UNREADABLE]
    same_schema, more = _leave_to_own_code(wanted, options)
    codes += more
    for folder in same_schema:
        try:
            if (how := _submitted(folder)) is None:
                print(f"left alone, since it was not submitted as a job: {folder}; run its command again")
            else:
                groups[how][folder] = read_frozen(folder)
        except (ConfigError, RecordError, OSError) as error:
            codes.append(_tell(error))
    would: list[Path] = []
    for (cwd, settings, code), runs in groups.items():
        try:
            there = {folder.resolve(): run for folder, run in runs.items()}
            with chdir(cwd):  # what a config says of folders holds from where it was submitted
                others = superseded(there)
                for folder, other in others.items():
                    print(f"left alone, since {other} is another attempt at it that is newer or goes on: {folder}")
                there = {folder: run for folder, run in there.items() if folder not in others}
                if there and not options.dry_run:
                    codes.append(_report(submit_again(there, settings, states, code)))
            would += [folder for folder in runs if folder.resolve() in there]
        except (SubmissionError, ConfigError, RecordError, OSError) as error:
            codes.append(_tell(error))
    if options.dry_run:
        print("\n".join([*map(str, would), f"{len(would)} runs would be submitted"]))
        return worst(codes)
    if not wanted:
        print("nothing to submit: no run below that folder has failed or was lost")
    return worst(codes)


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
    given = [*(["--preempted"] if options.preempted else []), *(["--dry-run"] if options.dry_run else [])]
    for code, runs in older.items():
        try:
            codes.append(requeue_by_own_code(runs, code, given))
        except (ConfigError, OSError) as error:
            codes.append(_tell(error))
    return others, codes


def _submitted(folder: Path) -> tuple[str, LauncherSettings, Path] | None:
    """Return from where, how, and with which code a run was submitted; None if it never was."""
    launch = read_launch(folder)
    if launch is None:
        return None
    settings = _settings(launch)
    if settings is None:
        raise RecordError(f"{folder}/launch.json does not say how it was submitted: run its command again")
    return str(launch.get("cwd", os.getcwd())), settings, submitted_code(folder)


def _report(outcome: Submitted) -> int:
    """Say what was submitted and what was not; return the exit code."""
    if outcome.submission is not None:
        jobs = ", ".join(outcome.submission.jobs)
        print(f"{len(outcome.submitted)} runs submitted as job {jobs}; logs in {outcome.submission.logs}")
    if outcome.left:
        print(outcome.told(), file=sys.stderr)
    return EXIT_CODES["refused"] if outcome.left else 0


def _tell(error: Exception) -> int:
    """Say what went wrong; return the exit code."""
    if isinstance(error, ConfigError):
        print(f"error: {error.text()}", file=sys.stderr)
        return EXIT_CODES["refused"]
    print(f"error: {error}", file=sys.stderr)
    return EXIT_CODES["failed"]


def _settings(launch: Mapping[str, Any]) -> LauncherSettings | None:
    """Return how a run was submitted; None if that is not on record, or is nothing that could have been."""
    try:
        settings = LauncherSettings(**launch["settings"])
    except (KeyError, TypeError):
        return None
    return settings if settings.cluster in get_args(Cluster) and not settings.problems() else None


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
