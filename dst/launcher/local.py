"""Stopping jobs of this machine, which are processes.

A process gets a signal only if it is the one on record, not a later one of the same number.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dst.launcher.observe import process_fields, process_lives
from dst.records.lock import holder, this_host
from dst.records.read import read_launch
from dst.records.restate import restate
from dst.records.states import State
from dst.records.store import Record, RecordError

WAITING: Final = (State.QUEUED, State.PREEMPTED, State.RUNNING)
"""What may be on record of a run that waits for its job. A run that was killed is still recorded as running."""

_CANCELLED: Final = "cancelled while it was queued; run the same command to submit it again"


def stop_job(folder: Path) -> str | None:
    """Ask the job of a run to stop, with all its runs; return why that is not possible."""
    return _attempted(folder, _stop_job)


def stop_run(folder: Path) -> str | None:
    """Stop one run of a job whose other runs go on; return why that is not possible."""
    return _attempted(folder, _stop_run)


def mark_cancelled(folder: Path) -> bool:
    """Record that a run was cancelled while it waited for its job; return whether it did wait."""
    return restate(folder, State.CANCELLED, _CANCELLED, among=WAITING)


def _attempted(folder: Path, act: Any) -> str | None:
    try:
        launch = read_launch(folder) or {}
        if launch.get("job") is None:
            return None  # it has left its job meanwhile
        if launch.get("host") != this_host():
            return f"job {launch['job']} runs on host {launch.get('host')}: cancel it there"
        told: str | None = act(folder, launch)
    except (OSError, RecordError) as error:
        return f"{folder} cannot be cancelled: {error}"
    return told


def _stop_job(folder: Path, launch: dict[str, Any]) -> str | None:
    if process_lives(launch):  # otherwise it has ended, and its number may belong to another process
        return _ask(int(launch["job"]))
    return None


def _stop_run(folder: Path, launch: dict[str, Any]) -> str | None:
    """A run that waits leaves its job, which passes it over; a process that carries out a run is asked to save it.

    Also one that began just while it was marked, and so did not read that.
    """
    if mark_cancelled(folder) and holder(folder) is None:
        Record.open(folder, durable=False).write_launch({**launch, "job": None})
        return None
    found = holder(folder)
    if found is None:  # it has just ended
        return None
    job = int(launch["job"])
    if found.host != this_host() or not process_lives(launch) or job not in _ancestors(found.pid):
        return f"{folder} is carried out by {found}, which job {job} has not started: stop it there"
    return _ask(found.pid)


def _ask(process: int) -> str | None:
    if process == os.getpid():
        return f"process {process} is this very command: the record is wrong, nothing was stopped"
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return None  # it has just ended
    except OSError as error:
        return f"process {process} cannot be stopped: {error}"
    return None


def _ancestors(process: int) -> Iterator[int]:
    """Yield the parent of a process, its parent, and so on."""
    while fields := process_fields(process):
        process = int(fields[1])
        yield process
