"""Walking a tree of runs: the run folders, the entries of groups, and the folders that cannot be read.

A run has a dozen files or more, and a tree many thousands of runs. Whether a folder is a run is found out once: as long
as its stamp is the same nothing was added, removed or renamed in it, so it still is one.
"""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Final

from dst.records import index
from dst.records.entries import SUFFIX

_KIND: Final = "folders"
_VERSION: Final = "1"

Identity = tuple[int, int]
"""Device and inode of a folder: one that is reached by several links is one folder."""


@dataclass
class Found:
    """What lies at or below a folder.

    ``runs``: run folders, in the order of their paths. ``entries``: files by which a group holds a run that lies
    elsewhere. ``closed``: folders that cannot be read, with the reason.
    """

    runs: dict[Path, Identity] = field(default_factory=dict)
    entries: list[Path] = field(default_factory=list)
    closed: dict[Path, OSError] = field(default_factory=dict)


@dataclass
class _Group:
    """A folder of folders: the stamps that its index has of the run folders in it, and those that were found now."""

    path: str
    known: dict[str, index.Stamp]
    new: dict[str, index.Stamp] = field(default_factory=dict)

    def keep(self, began: float) -> None:
        """Write the index, if it pays."""
        if index.pays(len(self.new), len(self.known)):
            index.save(self.path, _KIND, _VERSION, began, self._settled)

    def _settled(self, before: int) -> dict[str, index.Stamp]:
        new = {name: stamp for name, stamp in self.new.items() if index.changed_ns(stamp) < before}
        return index.present(self.path, {**self.known, **new})


def walk(root: Path, deepest: float = math.inf) -> Found:
    """Return what lies at or below a folder: nothing if there is no such folder; ``OSError`` if it cannot be read.

    Hidden folders and the inside of run folders are left out; links to folders are followed, each folder once.
    ``deepest``: how many folders below it runs are looked for.
    """
    began, walking = time.monotonic(), _Walk(deepest)
    walking.visit(os.fspath(root), None, 0)
    while walking.pending:
        walking.visit(*walking.pending.pop())
    for group in walking.groups:
        group.keep(began)
    return walking.found


class _Walk:
    """A walk under way. ``pending``: folders to visit, the next one last, each with what holds it, and its depth."""

    def __init__(self, deepest: float) -> None:
        self.found = Found()
        self.groups: list[_Group] = []
        self.pending: list[tuple[str, _Group | None, int]] = []
        self._seen: set[Identity] = set()
        self._deepest = deepest

    def visit(self, path: str, parent: _Group | None, depth: int) -> None:
        """Add a folder to what was found, or list it, unless it was visited before or has just vanished."""
        try:
            at = os.stat(path)
            identity = at.st_dev, at.st_ino
            if identity in self._seen:  # a link to it, perhaps a circle
                return
            self._seen.add(identity)
            if _is_run(path, at, parent):
                self.found.runs[Path(path)] = identity
            elif depth < self._deepest:
                self._look_into(path, identity, depth)
        except FileNotFoundError:
            return
        except OSError as error:
            if parent is None:
                raise
            if not isinstance(error, NotADirectoryError):  # it has just become a file
                self.found.closed[Path(path)] = error

    def _look_into(self, path: str, identity: Identity, depth: int) -> None:
        """List a folder. If it holds ``run.json`` after all (by a link, or it allows listing only), it is a run."""
        with os.scandir(path) as listed:
            is_folder = {entry.name: _is_folder(entry) for entry in listed}
        if is_folder.get("run.json") is False:
            self.found.runs[Path(path)] = identity
            return
        self.found.entries += [Path(path, name) for name in is_folder if name.endswith(SUFFIX) and not is_folder[name]]
        below = sorted(name for name in is_folder if is_folder[name] and not name.startswith("."))
        known = index.load(path, _KIND, _VERSION) if len(below) >= index.WORTH else None
        self.groups.append(_Group(path, known or {}))
        base = path if path.endswith("/") else f"{path}/"
        self.pending += [(base + name, self.groups[-1], depth + 1) for name in reversed(below)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _is_run(path: str, at: os.stat_result, parent: _Group | None) -> bool:
    """Say whether a folder is that of a run, with ``run.json`` as a file of its own; note it if it is."""
    name, stamp = path.rpartition("/")[2], index.stamp(at)
    if parent is not None and parent.known.get(name) == stamp:
        return True
    try:
        is_file = S_ISREG(os.lstat(f"{path}/run.json").st_mode)
    except OSError:  # there is none, or the folder can be listed only
        return False
    if is_file and parent is not None:
        parent.new[name] = stamp
    return is_file
