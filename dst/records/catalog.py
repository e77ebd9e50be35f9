"""Finding runs below a folder, and one table of all of them."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dst.records.entries import SUFFIX, read_entry
from dst.records.rows import Row, Told, told
from dst.records.states import WITHOUT_RECORD, State
from dst.records.store import RecordError
from dst.records.walk import Identity, walk

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    "id", "name", "group", "folder", "attempt_folder", "state", "step", "error", "created", "schema", "identity",
    "method", "correction", "procedure", "command",
)  # fmt: skip
"""Columns that every catalog has, before those of the config and the summary."""


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


def runs_of(root: Path) -> list[GroupRun]:
    """Return the runs that lie at or below ``root``, and those elsewhere for which a group there has an entry.

    Each run occurs once. A missing run is left out if another folder of it was found. A folder that cannot be read is
    one of them, too, as an unreadable run: it could hide some.
    """
    there = walk(root)
    found = [GroupRun(_id(path), path, path.parent) for path in there.runs]
    found += [_closed(path, error) for path, error in there.closed.items()]
    beside = cache(_newest_in)
    entries = [_entered(path, beside) for path in sorted(there.entries)]
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
    return GroupRun(_id(folder), folder, folder.parent, state=State.UNREADABLE, why=why)


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
    runs = runs_of(root)
    rows = told(run.folder for run in runs if run.state is None)
    frame = _frame(_placed(root, runs), [_asked(run, *rows.get(run.folder, ({}, {}))) for run in runs])
    return frame if all_attempts else newest(frame)


def recorded(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of a catalog whose record exists and can be read."""
    return frame[~frame["state"].isin(WITHOUT_RECORD)]


def newest(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of a catalog, for each run only that of its newest attempt folder.

    Of copies the one made last counts; of those made together, one whose folder has the name that the run gave it.
    """
    if not frame["id"].duplicated().any() and frame.index.is_monotonic_increasing:
        return frame.reset_index(drop=True)
    folders = zip(frame["folder"], frame["id"], strict=True)
    order = frame.assign(own=[_id(Path(str(folder))) == run for folder, run in folders])
    order = order.sort_values(["attempt_folder", "created", "own", "folder"], na_position="first")
    return frame.loc[order.drop_duplicates("id", keep="last").index.sort_values()].reset_index(drop=True)


def _placed(root: Path, runs: Iterable[GroupRun]) -> list[Row]:
    """Return the rows of runs as far as they are known without their records: ``COLUMNS``."""
    group_of = cache(lambda group: Path(os.path.relpath(group, root)).as_posix())
    return [
        {
            **_NOTHING,
            "id": run.id,
            "name": run.name,
            "group": group_of(run.group),
            "folder": str(run.folder),
            "attempt_folder": attempt_folder(run.folder),
            "state": (run.state or State.UNKNOWN).value,
            "error": run.why,
            "command": run.command,
        }
        for run in runs
    ]


def _asked(run: GroupRun, first: Row, own: Row) -> Told:
    """Return what is told of a run, with the command of the group instead of its own if the group has one."""
    return (first, own if run.command is None else own | {"command": run.command})


_NOTHING: Final[Row] = {**dict.fromkeys(COLUMNS), "identity": "{}"}


def _frame(placed: list[Row], rows: list[Told]) -> "pd.DataFrame":
    """Return a frame of what is known of each run without its record, and what its record says instead and beyond.

    pandas makes the same of a whole row for each run; this is four times faster where many share a row.
    """
    import pandas as pd  # here: this module is part of the start of every run, and importing pandas takes half a second

    alike = [list(block) for _, block in groupby((first for first, _ in rows), key=id)]
    blocks = [(block[0], len(block)) for block in alike]
    varying = {column for _, own in rows for column in own}
    known = {
        column: [_value(*row, column, at[column]) for row, at in zip(rows, placed, strict=True)] for column in COLUMNS
    }
    beyond = dict.fromkeys(column for shape in dict.fromkeys(tuple(first) for first, _ in blocks) for column in shape)
    values = {
        column: [_value(*row, column, math.nan) for row in rows] if column in varying else _repeated(blocks, column)
        for column in beyond
    }
    return pd.DataFrame({**dict.fromkeys(COLUMNS), **values, **known})


def _value(first: Row, own: Row, column: str, otherwise: Any) -> Any:
    return own[column] if column in own else first.get(column, otherwise)


def _repeated(blocks: Iterable[tuple[Row, int]], column: str) -> list[Any]:
    """Return the values of a column in which the rows of each block are alike."""
    return list(chain.from_iterable(repeat(first.get(column, math.nan), count) for first, count in blocks))
