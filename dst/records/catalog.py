"""Finding runs below a folder, and one table of all of them."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dst.records.entries import SUFFIX, read_entry
from dst.records.label import WRAPPERS, method_of, wrapper
from dst.records.read import read_run, read_status, read_summary
from dst.records.states import WITHOUT_RECORD, State
from dst.records.store import RecordError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    "id", "name", "group", "folder", "attempt_folder", "state", "step", "error", "created", "schema", "identity",
    "method", "correction", "procedure", "command",
)  # fmt: skip
"""Columns that every catalog has, before those of the config and the summary."""


def find_runs(root: Path) -> list[Path]:
    """Return the folders at or below ``root`` that hold a ``run.json``, sorted; none if there is no such root.

    Hidden folders and the inside of run folders are left out; links to folders are followed.
    """
    return sorted(path for path in _walk(root) if not _is_entry(path))


@dataclass(frozen=True)
class GroupRun:
    """A run that a group holds: its id, its folder, and the folder that holds it or the entry for it.

    ``state`` and ``why`` are set if no run can be read there: it is missing, or its entry is damaged (unreadable).
    """

    id: str
    folder: Path
    group: Path
    name: str | None = None
    state: State | None = None
    why: str | None = None
    command: str | None = None
    """The command by which this group asked for the run, if the run lies elsewhere; its own record has its own."""


def runs_of(root: Path) -> list[GroupRun]:
    """Return the runs that lie at or below ``root``, and those elsewhere for which a group there has an entry.

    Each run occurs once. A missing run is left out if another folder of it was found.
    """
    paths = list(_walk(root))
    found = [GroupRun(_id(path), path, path.parent) for path in sorted(paths) if not _is_entry(path)]
    beside = cache(_newest_in)
    entries = [_entered(path, beside) for path in sorted(paths) if _is_entry(path)]
    if not entries:
        return found
    known = {os.path.realpath(run.folder) for run in found}
    for run in entries:
        if run.state is None and (real := os.path.realpath(run.folder)) not in known:
            known.add(real)
            found.append(run)
    ids = {run.id for run in found}
    lacking = {run.id: run for run in entries if run.state is not None and run.id not in ids}
    return sorted([*found, *lacking.values()], key=lambda run: run.folder)


def _is_entry(path: Path) -> bool:
    return path.name.endswith(SUFFIX)


def _entered(path: Path, beside: Callable[[Path], dict[str, Path]]) -> GroupRun:
    """Return the run of an entry, in its newest attempt folder, which may be newer than the entry."""
    try:
        entry = read_entry(path)
        folder = beside(entry.folder.parent).get(_id(entry.folder), entry.folder)
        is_there = (folder / "run.json").exists()
    except (OSError, RecordError) as error:
        return GroupRun(path.name.removesuffix(SUFFIX), path, path.parent, state=State.UNREADABLE, why=str(error))
    state, why = (None, None) if is_there else (State.MISSING, entry.lack)
    return GroupRun(entry.id, folder, path.parent, entry.name, state, why, entry.command)


def _newest_in(group: Path) -> dict[str, Path]:
    """Return, by run id, the newest attempt folder of each run that has more than one in a group."""
    names = os.listdir(group) if group.is_dir() else []
    again = sorted((number, group / name) for name in names if (number := attempt_folder(Path(name))) > 1)
    return {_id(folder): folder for _, folder in again if (folder / "run.json").exists()}


def _id(folder: Path) -> str:
    return folder.name.removesuffix(f".{attempt_folder(folder)}")


def attempt_folder(folder: Path) -> int:
    """Return which attempt folder of its run this is: 1 for ``<run_id>``, 2 for ``<run_id>.2``, and so on."""
    number = folder.name.rpartition(".")[2] if "." in folder.name else ""
    return int(number) if number.isdecimal() else 1


def catalog(root: Path, *, all_attempts: bool = False) -> "pd.DataFrame":
    """Return a table of the runs that ``root`` holds (see ``runs_of``): one row for each run, in any state.

    Columns: ``COLUMNS``, of which ``method`` is the label and what was changed in the method, ``correction`` and
    ``procedure`` their names with options that are not the default; every config key as ``config.<dotted key>``, lists
    as JSON text; every value of the summary by its name. Only the newest attempt folder of a run counts, unless
    ``all_attempts``. The state of a run is ``unreadable`` if its record cannot be read
    (``error`` says why), ``unknown`` if it has no status, and ``missing`` if it is not where its group says.
    """
    import pandas as pd  # here: this module is part of the start of every run, and importing pandas takes half a second

    rows = [_row(root, run) for run in runs_of(root)]
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    return frame if all_attempts else newest(frame)


def recorded(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of a catalog whose record exists and can be read."""
    return frame[~frame["state"].isin(WITHOUT_RECORD)]


def newest(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of a catalog, for each run only that of its newest attempt folder."""
    order = frame.sort_values(["attempt_folder", "created", "folder"], na_position="first")
    return frame.loc[order.drop_duplicates("id", keep="last").index.sort_values()].reset_index(drop=True)


def _walk(root: Path) -> Iterator[Path]:
    """Yield run folders and the entries of groups."""
    seen = set()
    for folder, below, files in os.walk(root, onerror=_raise_unless_gone, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder that was visited, perhaps a circle
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        if "run.json" in files:
            below.clear()
            yield Path(folder)
        else:
            yield from (Path(folder, name) for name in files if name.endswith(SUFFIX))
        below[:] = sorted(name for name in below if not name.startswith("."))


def _raise_unless_gone(error: OSError) -> None:
    """Ignore a folder that has just vanished; raise anything else, since it could hide runs."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _row(root: Path, run: GroupRun) -> dict[str, Any]:
    folder = run.folder
    row = {
        "id": run.id,
        "name": run.name,
        "group": Path(os.path.relpath(run.group, root)).as_posix(),
        "folder": str(folder),
        "attempt_folder": attempt_folder(folder),
        "state": (run.state or State.UNKNOWN).value,
        "step": None,
        "error": run.why,
        "created": None,
        "schema": None,
        "identity": "{}",
        "method": None,
        **dict.fromkeys(WRAPPERS),
        "command": run.command,
    }
    if run.state is not None:
        return row
    try:
        about, status, summary = read_run(folder), read_status(folder) or {}, read_summary(folder) or {}
    except (OSError, RecordError) as error:
        return row | {"state": State.UNREADABLE.value, "error": str(error)}
    identity = about.get("identity", {})
    row |= {name: about[name] for name in ("id", "name", "created", "schema") if name in about}
    row |= {name: status[name] for name in ("step", "error") if name in status}
    row |= {"state": status["state"].value} if "state" in status else {}
    row |= {"identity": json.dumps(identity, sort_keys=True), "method": method_of(about)}
    row |= {kind: wrapper(kind, identity) for kind in WRAPPERS} | {"command": run.command or about.get("command")}
    config = identity | about.get("config", {})
    return row | {f"config.{key}": _cell(value) for key, value in config.items()} | summary


def _cell(value: Any) -> Any:
    """Return a config value in a form that can be compared and grouped by."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
