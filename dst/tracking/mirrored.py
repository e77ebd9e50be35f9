"""What wandb shows of the course of a run, made from its record alone: its history, its end, and what has arrived.

``<run folder>/wandb/sent.json``, the book, says what has arrived.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dst.files import file_sha256, replace_text
from dst.records.read import merge, parsed, read_json, read_metrics, read_status
from dst.records.states import State
from dst.records.store import COMPUTE, LAYERS, METRICS, NETWORKS, RESUME_EVENT, RecordError

PLACE: Final = "wandb"
"""The mirror's folder within a run folder: it has the book, and the lock of the process that sends."""

SCRATCH: Final = "dst-wandb-"
"""The beginning of the names of the temporary folders of processes that send."""

_BOOK: Final = "sent.json"

_FILES: Final = ("run.json", METRICS, LAYERS, COMPUTE, NETWORKS, "summary.json")
"""The files that are sent, besides the state."""


class NotSentError(RuntimeError):
    """A record did not arrive; the message says why."""


# -- the history -------------------------------------------------------------------------------------------------------


class History:
    """The rows of a history that a server lacks, while they are written: each once and complete, by growing step.

    A row is complete once a later one has begun, or when nothing more comes. Rows that a resume voids before they are
    yielded are left out. Steps that are taken again after they were yielded are not yielded twice. If a run was killed
    between two lines of a step, the row is yielded as it is, and once more if the next attempt adds to it. wandb's own
    step can only grow, so it must have room for that: it is twice the row's step, plus one for a repeated row.

    ``starting_step``: one more than wandb's step of the last line on the server. ``last``: the step of the last row
    that was sent and the names of its values, if known.
    """

    def __init__(self, folder: Path, starting_step: int, last: Mapping[str, Any]) -> None:
        self._path = folder / METRICS
        self._position = 0
        self._rows: dict[int, dict[str, Any]] = {}
        self._sent, is_again = divmod(starting_step - 1, 2)
        is_known = not is_again and last.get("step") == self._sent and isinstance(last.get("names"), list)
        self.last: dict[str, Any] = dict(last) if is_known else {"step": self._sent, "names": None}

    def new(self, *, is_over: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield wandb's step and the row for each row that is complete now; for all rows if the run is over."""
        for line in self._lines(is_over):
            step = line.get("step")
            if isinstance(step, int) and (step >= self._sent or line.get("event") == RESUME_EVENT):
                merge(self._rows, line)
        newest = max(self._rows, default=0)
        for step in sorted(self._rows):
            if step < newest or is_over:
                row = self._rows.pop(step)
                is_again = step == self._sent
                if step > self._sent or (is_again and self._is_longer(row)):
                    self._sent, self.last = step, {"step": step, "names": None if is_again else sorted(row)}
                    yield 2 * step + is_again, row

    def _is_longer(self, row: Mapping[str, Any]) -> bool:
        return self.last["names"] is not None and not row.keys() <= set(self.last["names"])

    def _lines(self, is_over: bool) -> Iterator[dict[str, Any]]:
        """Yield the added lines. One that is cut off, or still being written, waits until nothing more comes."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for text in file:
                if not (text.endswith(b"\n") or is_over):
                    break
                self._position += len(text)
                yield from parsed(text)


def with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line with NaN for each null: records are JSON, so they hold null for numbers that are not finite."""
    return {name: math.nan if value is None else value for name, value in row.items()}


# -- its end -----------------------------------------------------------------------------------------------------------


def best(folder: Path) -> dict[str, float]:
    """Return the best validation figures of the history, whether or not the run was selected by them."""
    rows = read_metrics(folder)
    found: dict[str, float] = {}
    for name, value, choose in (("accuracy_max", "val/accuracy", max), ("loss_min", "val/loss", min)):
        known = [row[value] for row in rows if isinstance(row.get(value), int | float)]
        found |= {f"val/{name}": choose(known)} if known else {}
    return found


def state(folder: Path) -> State:
    """Return the recorded state; ``KILLED`` for a run that is recorded as running, whether a process runs it or not."""
    found: State = (read_status(folder) or {}).get("state", State.RUNNING)
    return State.KILLED if found == State.RUNNING else found


# -- the book ----------------------------------------------------------------------------------------------------------


def contents(folder: Path, project: str, entity: str | None) -> dict[str, Any]:
    """Return what the book would say if the run was sent as it is now: where to, and each file's size and SHA-256."""
    return {
        "server": os.environ.get("WANDB_BASE_URL"),
        "project": project,
        "entity": entity,
        "state": state(folder),
        "files": {name: _fingerprint(folder / name) for name in _FILES if (folder / name).exists()},
    }


def read_book(folder: Path) -> dict[str, Any]:
    """Return the book of a run; empty if nothing has arrived, or if it is damaged: then the run is sent again."""
    try:
        book = read_json(folder / PLACE / _BOOK)
    except (FileNotFoundError, RecordError):
        return {}
    return book if isinstance(book.get("last"), dict) else {}


def write_book(folder: Path, arrived: Mapping[str, Any], last: Mapping[str, Any]) -> None:
    """Write the book: what has arrived, and which row was the last."""
    replace_text(folder / PLACE / _BOOK, json.dumps({**arrived, "last": last}, indent=2))


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": file_sha256(file)}
