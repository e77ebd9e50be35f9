"""Submit failed and lost runs again, as they were: ``python -m dst.launcher.requeue DIR``."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, get_args

from dst.app import Cell
from dst.config import ConfigError
from dst.launcher.arguments import command, folders_below
from dst.launcher.launch import relaunch
from dst.launcher.seen import LOST, look
from dst.launcher.settings import Cluster, LauncherSettings
from dst.launcher.submit import SubmissionError
from dst.records.read import read_launch
from dst.records.store import RecordError
from dst.states import EXIT_CODES, worst
from dst.terminal import program
from dst.verified import frozen_config

_DESCRIPTION = """\
Submit the runs below DIR that failed or were lost again, from their newest checkpoint, with the config and to the
cluster that they were submitted with. No config file is read. Diverged runs would diverge again and are left alone."""

_STATES = ("failed", LOST)


def main(arguments: Sequence[str]) -> int:
    """Submit again, and say what; return the exit code."""
    parser = command("requeue", _DESCRIPTION)
    parser.add_argument("--preempted", action="store_true", help="also those that were stopped or cancelled")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be submitted")
    options = parser.parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
    states = (*_STATES, "preempted") if options.preempted else _STATES
    wanted = [Path(run.folder) for run in look(folders) if run.state in states and not run.is_taken]
    launched = {folder: launch for folder in wanted if (launch := read_launch(folder)) and _settings(launch)}
    for folder in wanted:
        if folder not in launched:
            print(f"left alone, since no launch.json says how it was submitted: {folder}; run its command again")
    cells = _verified(launched)
    code = EXIT_CODES["refused"] if len(cells) < len(launched) else 0
    if options.dry_run:
        print("\n".join([*map(str, cells), f"{len(cells)} runs would be submitted"]))
        return code
    groups: dict[tuple[str, LauncherSettings], list[Cell]] = defaultdict(list)
    for folder, cell in cells.items():
        launch = launched[folder]
        settings = _settings(launch)
        if settings is not None:
            groups[launch.get("cwd", os.getcwd()), settings].append(cell)
    for (cwd, settings), together in groups.items():
        try:
            with chdir(cwd):  # what a config says of folders holds from where it was submitted
                submission = relaunch(together, settings, states)
        except (SubmissionError, ConfigError, RecordError, OSError) as error:
            print(f"error: {error.text() if isinstance(error, ConfigError) else error}", file=sys.stderr)
            code = worst([code, EXIT_CODES["failed"]])
            continue
        if submission is not None:
            print(f"{len(together)} runs submitted as job {', '.join(submission.jobs)}; logs in {submission.logs}")
    if not launched:
        print("nothing to submit: no run below that folder has failed or was lost")
    return code


def _verified(folders: Iterable[Path]) -> dict[Path, Cell]:
    """Return the runs whose frozen config is what was recorded; of the others, say what is wrong."""
    cells = {}
    for folder in folders:
        try:
            cells[folder] = Cell(frozen_config(folder), folder.resolve())
        except ConfigError as error:
            print(f"error: {error.text()}", file=sys.stderr)
    return cells


def _settings(launch: Mapping[str, Any]) -> LauncherSettings | None:
    """Return how a run was submitted; None if that is not on record, or is nothing that could have been."""
    try:
        settings = LauncherSettings(**launch["settings"])
    except (KeyError, TypeError):
        return None
    return settings if settings.cluster in get_args(Cluster) and not settings.problems() else None


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
