"""What the launcher's commands have in common."""

import argparse
import sys
from pathlib import Path

from dst.records.catalog import find_runs


def command(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m dst.launcher.<name> DIR``; its ``dir`` is where the runs are."""
    parser = argparse.ArgumentParser(
        prog=f"python -m dst.launcher.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="an output root, a group, or one run's folder")
    return parser


def folders_below(root: Path) -> list[Path] | None:
    """Return the run folders at or below a folder; None, having said so, if that cannot be."""
    if not root.is_dir():
        print(f"error: there is no folder {root}; give an output root, a group, or a run's folder", file=sys.stderr)
        return None
    try:
        return find_runs(root)
    except OSError as error:
        print(f"error: cannot look for runs in {root}: {error}", file=sys.stderr)
        return None
