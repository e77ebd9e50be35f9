"""Submit failed and lost runs again, as they were: ``python -m dst.launcher.requeue DIR``."""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from dst.config import ConfigError
from dst.launcher.arguments import command, folders_below
from dst.launcher.frozen import submitted_code
from dst.launcher.launch import REQUEUED, Launched, relaunch
from dst.launcher.seen import look
from dst.launcher.settings import LauncherSettings
from dst.launcher.submit import SubmissionError
from dst.records.read import read_launch
from dst.records.store import RecordError

_DESCRIPTION = """\
Submit the runs below DIR that failed, were lost, or were not taken by the cluster again, from their newest checkpoint,
with the config, the code (outputs/.code) and to the cluster that they were submitted with. No config file is read.
Diverged runs would diverge again and are left alone."""

_STOPPED = ("preempted", "cancelled")


def main(arguments: Sequence[str]) -> int:
    """Submit again, and say what; return the exit code."""
    parser = command("requeue", _DESCRIPTION)
    parser.add_argument("--preempted", action="store_true", help="also those that were stopped or cancelled")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be submitted")
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    states = (*REQUEUED, *_STOPPED) if options.preempted else REQUEUED
    groups: dict[tuple[str, LauncherSettings, Path], list[Path]] = defaultdict(list)
    failed = False
    for folder in [Path(run.folder) for run in look(folders) if run.state in states and not run.is_taken]:
        try:
            if (how := _submitted(folder)) is None:
                print(f"left alone, since it was not launched as a job: {folder}; run its command again")
            else:
                groups[how].append(folder)
        except (ConfigError, RecordError, OSError) as error:
            failed = _tell(error)
    if options.dry_run:
        wanted = [folder for together in groups.values() for folder in together]
        print("\n".join([*map(str, wanted), f"{len(wanted)} runs would be submitted"]))
        return 1 if failed else 0
    for (cwd, settings, code), together in groups.items():
        try:
            there = [folder.resolve() for folder in together]
            with chdir(cwd):  # what a config says of folders holds from where it was submitted
                launched = relaunch(there, settings, states, code)
        except (SubmissionError, ConfigError, RecordError, OSError) as error:
            failed = _tell(error)
            continue
        failed |= bool(launched.left)
        _report(launched)
    if not groups and not failed:
        print("nothing to submit: no run below that folder has failed or was lost")
    return 1 if failed else 0


def _submitted(folder: Path) -> tuple[str, LauncherSettings, Path] | None:
    """Return from where, how, and with which code a run was submitted; None if it never was."""
    launch = read_launch(folder)
    if launch is None:
        return None
    try:
        settings = LauncherSettings(**launch["settings"])
        cwd = str(launch.get("cwd", os.getcwd()))
    except (KeyError, TypeError) as error:
        raise RecordError(f"{folder}/launch.json makes no sense ({error}): run its command again") from error
    return cwd, settings, submitted_code(folder)


def _report(launched: Launched) -> None:
    if launched.submission is not None:
        jobs = ", ".join(launched.submission.jobs)
        print(f"{len(launched.submitted)} runs submitted as job {jobs}; logs in {launched.submission.logs}")
    if launched.left:
        print(launched.told(), file=sys.stderr)


def _tell(error: Exception) -> bool:
    print(f"error: {error.text() if isinstance(error, ConfigError) else error}", file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
