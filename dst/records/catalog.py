"""One table of all runs that an output root or a group holds."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dst.records.groups import GroupRun, runs_of
from dst.records.groups import find_runs as find_runs
from dst.records.rows import Row, Told, told
from dst.records.same import rank
from dst.records.states import WITHOUT_RECORD, State

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    "id", "name", "group", "folder", "attempt_folder", "copies", "state", "attempt", "step", "error", "created",
    "schema", "identity", "method", "correction", "procedure", "command",
)  # fmt: skip
"""Columns that every catalog has, before those of the config and the summary."""


def catalog(root: Path, *, all_attempts: bool = False) -> "pd.DataFrame":
    """Return a table of the runs that ``root`` holds (see ``runs_of``): one row for each run, in any state.

    Columns: ``COLUMNS``, of which ``method`` is the label and what was changed in the method, ``correction`` and
    ``procedure`` their names with options that are not the default, ``copies`` further folders of the run as JSON text;
    every config key as ``config.<dotted key>``, lists as JSON text; every value of the summary by its name.
    Only the newest attempt folder of a run counts, unless
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
    """Return the rows of a catalog, for each run only that of the folder that counts (see ``same.rank``)."""
    if not frame["id"].duplicated().any() and frame.index.is_monotonic_increasing:
        return frame.reset_index(drop=True)
    import pandas as pd  # here: as below

    wanted = frame.reindex(columns=["id", "folder", "attempt_folder", *_RANKED]).itertuples(index=False)
    ranks = [
        rank(run, Path(folder), attempt, dict(zip(_RANKED, row, strict=True))) for run, folder, attempt, *row in wanted
    ]
    order = frame.loc[[at for _, at in sorted(zip(ranks, frame.index, strict=True))]]
    kept = order.drop_duplicates("id", keep="last").sort_index()
    return kept.assign(copies=pd.Series(_copies(frame, kept), kept.index, object)).reset_index(drop=True)


def _copies(frame: "pd.DataFrame", kept: "pd.DataFrame") -> list[str | None]:
    """Return where copies of the rows that are kept lie, as JSON, also those in trees that were read together."""
    lie: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for *run, folder, copies in frame.reindex(columns=_PLACES).itertuples(index=False):
        lie[*run] |= {os.path.realpath(place): place for place in (folder, *copies_in(copies))}
    found: list[str | None] = []
    for *run, folder, _ in kept[_PLACES].itertuples(index=False):
        others = [place for real, place in lie[*run].items() if real != os.path.realpath(folder)]
        found.append(json.dumps(others) if others else None)
    return found


def copies_in(cell: Any) -> list[str]:
    """Return the folders in a cell of the column ``copies``; none if it is empty."""
    return [*json.loads(cell)] if isinstance(cell, str) else []


_PLACES: Final = ["id", "attempt_folder", "folder", "copies"]
_RANKED: Final = ("state", "created", "attempt", "step")


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
            "attempt_folder": run.attempt,
            "copies": json.dumps([*map(str, run.copies)]) if run.copies else None,
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
