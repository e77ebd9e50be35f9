"""What the launcher's commands have in common."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from dst.records.groups import GroupRun, runs_of
from dst.run import given
from dst.words import few


def command(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m dst.launcher.<name> DIR``; its ``dir`` is where the runs are."""
    parser = argparse.ArgumentParser(
        prog=f"python -m dst.launcher.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", type=given.path, metavar="DIR", help="an output root, a group, or one run's folder")
    return parser


def folders_below(root: Path) -> list[Path] | None:
    """Return the folders of the runs that a folder holds; print an error and return None if it cannot be read.

    Print a warning for each run that is not where its group says, and a note for each that was renamed or copied.
    """
    found = runs_below(root)
    if found is None:
        return None
    for run in found:
        if run.state is not None:
            print(f"warning: {run.why}", file=sys.stderr)
    print("".join(f"{note}\n" for note in notes_on(found)), end="", file=sys.stderr)
    return [run.folder for run in found if run.state is None]


def notes_on(runs: Iterable[GroupRun]) -> list[str]:
    """Return what people should know about the folders of runs, the first few of each kind named."""
    return [f"note: {note}" for note in few([note for run in runs for note in run.notes])]


def runs_below(root: Path) -> list[GroupRun] | None:
    """Return the runs that a folder holds, missing ones too; print an error and return None if it cannot be read."""
    if not root.is_dir():
        print(f"error: there is no folder {root}; give an output root, a group, or a run's folder", file=sys.stderr)
        return None
    try:
        return runs_of(root)
    except OSError as error:
        print(f"error: cannot look for runs in {root}: {error}", file=sys.stderr)
        return None
