"""Changing the state of a run from outside, by somebody who does not carry it out."""

from pathlib import Path
from typing import Any

from dst.records.read import read_status
from dst.records.store import Record


def restate(folder: Path, state: str, error: str | None = None, *, durable: bool = True, **more: Any) -> None:
    """Replace the state in a run's ``status.json``; where the run stands (attempt, step, of how many) stays.

    ``durable``: as of ``Record.create``; ``more``: further fields. RecordError if there is no record, or a damaged one.
    """
    before = read_status(folder) or {}
    Record.open(folder, durable=durable).write_status(
        state,
        attempt=before.get("attempt", 0),
        step=before.get("step", 0),
        total_steps=before.get("total_steps"),
        error=error,
        **more,
    )
