"""What the launcher's commands have in common."""

import sys
from pathlib import Path

from dst.records.catalog import find_runs


def folders_below(root: Path) -> list[Path] | None:
    """Return the run folders at or below a folder; None, having said so, if there is no such folder."""
    if not root.is_dir():
        print(f"error: there is no folder {root}; give an output root, a group, or a run's folder", file=sys.stderr)
        return None
    return find_runs(root)
