"""Changing the state of a run from outside, while no process carries it out."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from dst.records.lock import holder
from dst.records.read import read_status
from dst.records.states import RECORDED, State
from dst.records.store import Record

_OWN: Final = frozenset({"state", "attempt", "step", "total_steps", "error", "host", "pid"})
"""Fields of ``status.json`` that every change of state writes itself."""


def restate(
    folder: Path,
    state: State,
    error: str | None = None,
    *,
    among: Collection[State] = RECORDED,
    keep_attempt: bool = False,
    durable: bool = True,
    **more: Any,
) -> bool:
    """Replace the state in a run's ``status.json``; return whether it was replaced.

    Nothing changes if a process carries out the run, or its state is not in ``among``. Attempt and step stay; other
    fields, the last heartbeat included, only with ``keep_attempt``. ``more``: further fields. ``durable``: as in
    ``Record.create``. Raises RecordError if there is no record, or a damaged one.
    """
    record = Record.open(folder, durable=durable)
    before = read_status(folder) or {}
    if (before and before["state"] not in among) or holder(folder) is not None:
        return False
    kept = {name: value for name, value in before.items() if keep_attempt and name not in _OWN}
    record.write_status(
        state,
        attempt=before.get("attempt", 0),
        step=before.get("step", 0),
        total_steps=before.get("total_steps"),
        error=error,
        **kept,
        **more,
    )
    return True
