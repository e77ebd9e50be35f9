"""The rows of a catalog: what the record of each run says, read again only if it has changed."""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
    rows: dict[Path, Told] = {}
    new: dict[str, tuple[Stamps, Row]] = {}
    for folder in folders:
        stamps = _stamps(str(folder))
        found = known.told(folder.name, stamps)
        if found is None:
            found = _read(folder), {}
            if found[0].get("state") != State.UNREADABLE:
                new[folder.name] = stamps, found[0]
        rows[folder] = found
    if index.pays(len(new), len(known.rows)):
        index.save(group, _KIND, _version(), began, lambda before: known.with_new(group, new, before))
    return rows


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> Row:
    """Return what a record says now."""
    try:
        about, status, summary = read_run(folder), read_status(folder) or {}, read_summary(folder) or {}
    except (OSError, RecordError) as error:
        return {"state": State.UNREADABLE.value, "error": str(error)}
    identity = about.get("identity", {})
    row: Row = {name: about[name] for name in ("id", "name", "created", "schema") if name in about}
    row |= {name: status[name] for name in ("step", "error") if name in status}
    row |= {"state": status["state"].value} if "state" in status else {}
    row |= {"identity": json.dumps(identity, sort_keys=True), "method": method_of(about)}
    row |= {kind: wrapper(kind, identity) for kind in WRAPPERS}
    config = identity | about.get("config", {})
    return row | {_column(key): _cell(value) for key, value in config.items()} | summary


@cache
def _column(key: str) -> str:
    """Return the column of a config key: always the same object, which is looked up faster than an equal one."""
    return f"config.{key}"


def _cell(value: Any) -> Any:
    """Return a config value in a form that can be compared and grouped by."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


# -- what an index holds -----------------------------------------------------------------------------------------------

_PLAIN: Final = (str, int, bool, type(None))


class _Known:
    """The rows in an index: each is a first row that has the same columns, and in which of them it differs.

    Most columns of most runs are alike: an index is a tenth of the records.
    """

    def __init__(self, held: Any) -> None:
        self._firsts: list[Row] = held["firsts"] if held else []
        self.rows: dict[str, Any] = held["rows"] if held else {}

    def told(self, name: str, stamps: Stamps) -> Told | None:
        """Return what a record says if its files have these stamps still; None if it has to be read."""
        then, first, differing = self.rows.get(name, (None, 0, {}))
        return (self._firsts[first], differing) if then == stamps else None

    def with_new(self, group: str, new: Mapping[str, tuple[Stamps, Row]], before: int) -> dict[str, Any]:
        """Return what the index shall hold now: also the new rows that were last changed before a time."""
        firsts = {tuple(row): (number, row) for number, row in enumerate(self._firsts)}
        rows = index.present(group, self.rows)
        for name, (stamps, row) in new.items():
            if all(index.changed_ns(stamp) < before for stamp in stamps if stamp):
                number, first = firsts.setdefault(tuple(row), (len(firsts), row))
                rows[name] = stamps, number, {key: value for key, value in row.items() if not _same(value, first[key])}
        return {"firsts": [row for _, row in firsts.values()], "rows": rows}


def _same(one: Any, other: Any) -> bool:
    """Say whether two values are the same also in a file: 1, 1.0 and true are equal, but three values."""
    if type(one) is not type(other):
        return False
    return one == other if isinstance(one, _PLAIN) else isinstance(one, float) and repr(one) == repr(other)


def _stamps(folder: str) -> Stamps:
    """Return the stamps of the files that a row is made from; None for one that is not there."""
    stamps: Stamps = []
    for name in _FILES:
        try:
            stamps.append(index.stamp(os.stat(f"{folder}/{name}")))
        except OSError:
            stamps.append(None)
    return stamps


@cache
def _version() -> str:
    """Return the version of the rows: that of the code which makes them."""
    parts = (sys.modules[__name__], index, label, options, read, states)
    return sha256(" ".join(file_sha256(Path(str(part.__file__))) for part in parts))
