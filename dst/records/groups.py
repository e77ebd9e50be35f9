"""What an output root or a group holds: the runs that lie below it, and those elsewhere that it has entries for."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dst.records.entries import SUFFIX, Entry, read_entry
from dst.records.same import Held, attempt_folder, by_id, copies_note, id_in, is_named_by_id, ranked, renamed_note
from dst.records.states import State
from dst.records.store import RecordError
from dst.records.walk import Identity, walk


def find_runs(root: Path) -> list[Path]:
    """Return the folders at or below ``root`` that hold a ``run.json``, sorted; none if there is no such root.

    Hidden folders and the inside of run folders are left out; links to folders are followed. Raises ``OSError`` if a
    folder cannot be read, since it could hide runs.
    """
    found = walk(root)
    for error in found.closed.values():
        raise error
    return list(found.runs)


@dataclass(frozen=True)
class GroupRun:
    """A run that a group holds: its id, its folder, and the folder that holds it or the entry for it.

    ``state`` and ``why`` are set if no run can be read there: it is missing, or what says where it is, its entry or a
    folder that may hold it, is unreadable.
    """

    id: str
    folder: Path
    group: Path
    name: str | None = None
    state: State | None = None
    why: str | None = None
    command: str | None = None
    """The command by which this group asked for the run, if the run lies elsewhere; its own record has its own."""
    attempt: int = 1
    """Which of the attempt folders of the run it is."""
    copies: tuple[Path, ...] = ()
    """Further folders of this attempt, which do not count."""

    @property
    def notes(self) -> list[str]:
        """What people should know about its folder: that it was renamed, that there are copies."""
        is_renamed = self.state is None and id_in(self.folder.name) != self.id
        renamed = [renamed_note(self.id, self.folder)] if is_renamed else []
        return [*renamed, *([copies_note(self.id, self.folder, self.copies)] if self.copies else [])]


def runs_of(root: Path) -> list[GroupRun]:
    """Return the runs that lie at or below ``root``, and those elsewhere for which a group there has an entry.

    Each attempt folder of a run occurs once, whatever it is called and however many copies it has. A missing run is
    left out if another folder of it was found. A folder that cannot be read is one of them, too, as an unreadable run:
    it could hide some.
    """
    there = walk(root)
    found = [run for name, its in ranked(by_id(there.runs)).items() for run in _attempts(name, its)]
    found += [_closed(path, error) for path, error in there.closed.items()]
    known_elsewhere = _Elsewhere()
    entries = [_entered(path, known_elsewhere) for path in sorted(there.entries)]
    known: set[Identity | Path] = set(there.runs.values()) if entries else set()
    for run in entries:
        if run.state is None and (identity := _identity(run.folder)) not in known:
            known.add(identity)
            found.append(run)
    ids = {run.id for run in found}
    lacking = {run.id: run for run in entries if run.state is not None and run.id not in ids}
    return sorted([*found, *lacking.values()], key=lambda run: run.folder)


def _identity(folder: Path) -> Identity | Path:
    """Return by what a folder is known, whichever way leads to it."""
    try:
        at = os.stat(folder)
    except OSError:  # it has just vanished
        return folder
    return at.st_dev, at.st_ino


def _closed(folder: Path, error: OSError) -> GroupRun:
    why = f"{folder} cannot be read ({error.strerror}), and runs in it are not shown: allow it, or move it elsewhere"
    run, attempt = id_in(folder.name), attempt_folder(folder)
    return GroupRun(run, folder, folder.parent, state=State.UNREADABLE, why=why, attempt=attempt)


def _attempts(run: str, held: list[Held]) -> list[GroupRun]:
    """Return each attempt folder of a run; ``held``: all its folders, the one that counts first."""
    attempts: dict[int, list[Path]] = {}
    for one in held:
        attempts.setdefault(one.attempt, []).append(one.folder)
    return [
        GroupRun(run, folder, folder.parent, attempt=attempt, copies=tuple(copies))
        for attempt, (folder, *copies) in attempts.items()
    ]


def _entered(path: Path, elsewhere: "_Elsewhere") -> GroupRun:
    """Return the run of an entry, in the folder that counts, which may be newer than the entry or renamed since."""
    try:
        entry = read_entry(path)
        folder = elsewhere.counting(entry, path.parent)
        is_there = (folder / "run.json").exists()
    except (OSError, RecordError) as error:
        return GroupRun(path.name.removesuffix(SUFFIX), path, path.parent, state=State.UNREADABLE, why=str(error))
    state, why = (None, None) if is_there else (State.MISSING, entry.lack)
    return GroupRun(entry.id, folder, path.parent, entry.name, state, why, entry.command, attempt_folder(folder))


class _Elsewhere:
    """Where the runs of entries lie now; each place is looked at once."""

    def __init__(self) -> None:
        self._beside = cache(counting_in)
        self._below = cache(_runs_below)

    def counting(self, entry: Entry, group: Path) -> Path:
        """Return the folder that counts: in the group that the entry names or, if there is none, below its root.

        ``group``: that of the entry. It may have been copied away, and what seems to be the root be a home folder. So
        other groups are looked for no deeper than these two lie.
        """
        folder = self._beside(entry.folder.parent).get(entry.id, entry.folder)
        if (folder / "run.json").exists() or entry.root is None:
            return folder
        depth = max(len(Path(os.path.relpath(below, entry.root)).parts) for below in (entry.folder, group / entry.id))
        moved = self._below(entry.root, depth).get(entry.id)
        return folder if moved is None else ranked({entry.id: moved})[entry.id][0].folder


def _runs_below(root: Path, deepest: int) -> dict[str, list[Path]]:
    """Return the runs so deep below a folder by their ids; none if it cannot be read."""
    try:
        return by_id(walk(root, deepest).runs)
    except OSError:
        return {}


def counting_in(group: Path) -> dict[str, Path]:
    """Return, by run id, the folder that counts of each run that has one in a group which is not called by its id."""
    names = os.listdir(group) if group.is_dir() else []
    others = (path for name in names if not name.startswith(".") and not is_named_by_id(path := group / name))
    found = by_id(path for path in others if os.path.exists(path / "run.json"))  # not in one that cannot be read
    for run, folders in found.items():
        plain = group / run
        if plain not in folders and os.path.exists(plain / "run.json"):
            folders.append(plain)
    return {run: held[0].folder for run, held in ranked(found).items()}
