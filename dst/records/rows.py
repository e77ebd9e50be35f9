"""The rows of a catalog: what the record of each run says, read again only if it has changed."""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from dst import options
from dst.files import file_sha256, sha256
from dst.records import index, label, read, states
from dst.records.label import WRAPPERS, method_of, wrapper
from dst.records.read import read_run, read_status, read_summary
from dst.records.states import State
from dst.records.store import RecordError

_KIND: Final = "rows"
_ABOUT: Final = ("id", "name", "created", "schema", "command", "attempt_folder")
"""What a row has from ``run.json`` as it stands there."""
_FILES: Final = ("run.json", "status.json", "summary.json")
"""What a row is made from."""

Stamps = list[index.Stamp | None]
"""Those of ``_FILES``; None for one that is not there."""

Row = dict[str, Any]
"""Column -> value."""

Told = tuple[Row, Row]
"""What a record says: a row that it may share with others, which must not be changed, and where its own differs."""


def told(folders: Iterable[Path]) -> dict[Path, Told]:
    """Return for each run folder what its record says, as columns of a catalog; of a damaged one, why."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        groups[os.path.dirname(folder)].append(folder)
    rows: dict[Path, Told] = {}
    for group, its in groups.items():
        rows |= _indexed(group, its) if len(its) >= index.WORTH else {folder: (_read(folder), {}) for folder in its}
    return rows


def _indexed(group: str, folders: Iterable[Path]) -> dict[Path, Told]:
    """Return what the records of runs in a group say. Those are read that are not as its index knows them."""
    began, known = time.monotonic(), _Known(index.load(group, _KIND, _version()))
    rows = {folder: known.told(folder) for folder in folders}
    if index.pays(len(known.new), len(known.rows)):
        index.save(group, _KIND, _version(), began, lambda before: known.with_new(group, before))
    return rows


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> Row:
    """Return what a record says now."""
    try:
        about, status, summary = read_run(folder), read_status(folder) or {}, read_summary(folder) or {}
    except (OSError, RecordError) as error:
        return {"state": State.UNREADABLE.value, "error": str(error)}
    identity = about.get("identity", {})
    row: Row = {name: about[name] for name in _ABOUT if name in about}
    row |= {name: status[name] for name in ("attempt", "step", "error") if name in status}
    row |= {"state": status["state"].value} if "state" in status else {}
    row |= {"identity": _json(identity), "method": method_of(about)}
    row |= {kind: wrapper(kind, identity) for kind in WRAPPERS}
    config = identity | about.get("config", {})
    cells = {_column(key): _json(value) if type(value) in (list, dict) else value for key, value in config.items()}
    return row | cells | summary


@cache
def _column(key: str) -> str:
    """Return the column of a config key: always the same object, which is looked up faster than an equal one."""
    return f"config.{key}"


_json: Final = json.JSONEncoder(sort_keys=True).encode
"""Gives a list or mapping a form that can be compared and grouped by; made once, since making it takes longer."""


# -- what an index holds -----------------------------------------------------------------------------------------------


class _Known:
    """The rows in an index: each is a first row that has the same columns, and in which of them it differs.

    Most columns of most runs are alike, so an index is a tenth of the records. ``new``: rows that are not in it yet.
    """

    def __init__(self, held: Any) -> None:
        firsts = held["firsts"] if held else []
        self.rows: dict[str, list[Any]] = held["rows"] if held else {}
        self.new: dict[str, list[Any]] = {}
        self._firsts: list[Row] = firsts
        self._number = {tuple(row): number for number, row in enumerate(firsts)}

    def told(self, folder: Path) -> Told:
        """Return what a record says, read unless its files have the stamps in the index still."""
        stamps = _stamps(str(folder))  # before reading: what changes meanwhile is read again
        then, number, own = self.rows.get(folder.name, _NOTHING)
        if stamps is None or then != stamps:
            row = _read(folder)
            if stamps is None or row.get("state") == State.UNREADABLE:
                return row, {}
            number, own = self._shared(row)
            self.new[folder.name] = [stamps, number, own]
        return self._firsts[number], own

    def _shared(self, row: Row) -> tuple[int, Row]:
        """Return the number of a first row with the same columns, and in which of them this row differs."""
        number = self._number.setdefault(tuple(row), len(self._firsts))
        if number == len(self._firsts):
            self._firsts.append(row)
        first = self._firsts[number]
        return number, {key: own for key, own in row.items() if own is not (its := first[key]) and not _same(own, its)}

    def with_new(self, group: str, before: int) -> dict[str, Any]:
        """Return what the index shall hold now: also the new rows whose files were last changed before a time."""
        new = {name: row for name, row in self.new.items() if all(index.changed_ns(at) < before for at in row[0] if at)}
        return {"firsts": self._firsts, "rows": index.present(group, self.rows | new)}


_NOTHING: Final[list[Any]] = [None, 0, {}]


def _same(one: Any, other: Any) -> bool:
    """Say whether two values are the same also in a file: 1, 1.0 and true are equal, but three values."""
    kind = type(one)
    if kind is not type(other) or kind in (list, dict):
        return False
    return bool(repr(one) == repr(other) if kind is float else one == other)


def _stamps(folder: str) -> Stamps | None:
    """Return the stamps of the files that a row is made from; None if they cannot be had."""
    stamps: Stamps = []
    for name in _FILES:
        try:
            stamps.append(index.stamp(os.stat(f"{folder}/{name}")))
        except FileNotFoundError:
            stamps.append(None)
        except OSError:
            return None
    return stamps


@cache
def _version() -> str:
    """Return the version of the rows: that of the code which makes them."""
    parts = (sys.modules[__name__], index, label, options, read, states)
    return sha256(" ".join(file_sha256(Path(str(part.__file__))) for part in parts))
