"""Entries, by which a group holds runs that were begun under another one.

An entry is a file ``<run id>.elsewhere.json`` in the group's folder. It holds the path of the run relative to the
output root, and the path of the root relative to the entry, so the root may be moved. Each entry is replaced atomically
on its own, so several sweeps may write at once.
"""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dst.files import replace_text
from dst.records.read import read_json
from dst.records.store import RecordError

SUFFIX: Final = ".elsewhere.json"
"""The end of an entry's file name, after the run's id."""


@dataclass(frozen=True)
class Entry:
    """A run that lies elsewhere, as its group knows it: folder, readable name, and the command that asked for it."""

    id: str
    name: str
    folder: Path
    command: str
    cwd: str | None = None
    """The folder in which the command was given; None in entries of earlier versions."""
    root: Path | None = None
    """The output root, where the entry is read."""

    @property
    def lack(self) -> str:
        """The message for the case that the run is missing."""
        again = in_folder(self.command, self.cwd)
        return f"run {self.id} ({self.name}) is missing: it is not in {self.folder} any more; again by: {again}"


def in_folder(command: str | None, cwd: str | None) -> str | None:
    """Return a command with the folder in which it was given, as far as both are known, for a shell."""
    return command if command is None or cwd is None else f"cd {shlex.quote(cwd)} && {command}"


def entry_path(group: Path, run_id: str) -> Path:
    """Return where the entry of a run lies in a group's folder."""
    return group / f"{run_id}{SUFFIX}"


def write_entry(path: Path, entry: Entry, *, root: Path) -> None:
    """Make or replace the entry of a run below the output root, unless it is right already; ``OSError``."""
    try:
        if read_entry(path).folder == Path(os.path.normpath(entry.folder)):
            return
    except (FileNotFoundError, RecordError):
        path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "id": entry.id,
        "name": entry.name,
        "run": entry.folder.relative_to(root).as_posix(),
        "root": Path(os.path.relpath(root, path.parent)).as_posix(),
        "command": entry.command,
        **({} if entry.cwd is None else {"cwd": entry.cwd}),
    }
    replace_text(path, json.dumps(told, indent=2), durable=False)


def read_entry(path: Path) -> Entry:
    """Return an entry; ``RecordError`` if it is damaged, ``OSError`` if it cannot be read."""
    told = read_json(path)
    values = [told.get(name) for name in ("id", "name", "root", "run", "command")] + [told.get("cwd", "")]
    if not all(isinstance(value, str) and "\0" not in value for value in values):
        raise RecordError(f"{path} does not say where its run is: remove it, and give the command of its sweep again")
    identifier, name, root, run, command, cwd = map(str, values)
    above = Path(os.path.normpath(path.parent / root))
    return Entry(identifier, name, Path(os.path.normpath(above / run)), command, cwd or None, above)
