"""What has become of runs, as far as can be seen: their records, their locks, and what SLURM says of their jobs."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dst.launcher import slurm
from dst.records.lock import holder
from dst.records.read import read_launch, read_run, read_status, read_summary
from dst.records.store import RecordError

LOST: Final = "lost"
"""The state of a run that its record takes for queued or running while no job and no process carries it out."""

_STARTUP_S: Final = 120.0
"""How long a job that runs may take to begin its run."""

_TAIL_BYTES: Final = 65536


@dataclass(frozen=True)
class Seen:
    """One run. ``state``: as its record says, or ``lost``; ``slurm``: the state of its job in SLURM's own words.

    ``accuracy``: the last one measured, on the validation or, when done, on the test set. ``eta_s``: seconds to go.
    ``is_taken``: a process or a job carries it out, or will. ``why``: why it failed or stopped.
    """

    folder: str
    name: str
    state: str
    attempt: int
    step: int
    total_steps: int | None
    accuracy: float | None
    eta_s: float | None
    cluster: str | None
    job: str | None
    slurm: str | None
    is_taken: bool
    why: str | None


def look(folders: Iterable[Path]) -> list[Seen]:
    """Return what is seen of these runs; SLURM is asked once for all."""
    launches = {folder: _launch(folder) for folder in folders}
    jobs = slurm.jobs(str(at.get("job")) for at in launches.values() if at.get("cluster") == "slurm")
    return [_seen(folder, launch, jobs) for folder, launch in launches.items()]


def _launch(folder: Path) -> dict[str, Any]:
    try:
        return read_launch(folder) or {}
    except (OSError, RecordError) as error:
        return {"damaged": str(error)}


def _seen(folder: Path, launch: dict[str, Any], jobs: dict[str, slurm.SlurmJob] | None) -> Seen:
    job = (jobs or {}).get(str(launch.get("job")))
    status, name, summary = _recorded(folder)
    if "damaged" in launch:
        status = {**status, "state": "unreadable", "error": launch["damaged"]}
    is_held = holder(folder) is not None
    lives = is_held or _lives(launch, jobs)
    state, why = status["state"], status.get("error")
    if not is_held:
        may_be_back = lives and (job is not None or launch.get("host") == os.uname().nodename)
        state, why = _without_process(status, lives=lives, may_be_back=may_be_back, job=job)
    measured = summary.get("test/accuracy") if summary else _last_accuracy(folder)
    return Seen(
        folder=str(folder),
        name=name,
        state=state,
        attempt=status.get("attempt", 0),
        step=status.get("step", 0),
        total_steps=status.get("total_steps"),
        accuracy=measured,
        eta_s=_eta(status) if state == "running" else None,
        cluster=launch.get("cluster"),
        job=launch.get("job"),
        slurm=None if job is None else job.state,
        is_taken=is_held or (state in ("queued", "preempted", LOST) and lives),
        why=why if state not in ("running", "queued", "done") else None,
    )


def _recorded(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return a run's status, name and, when it is done, final figures, as far as its record can be read."""
    try:
        status = read_status(folder) or {"state": "unknown"}
        name = str(read_run(folder).get("name", folder.name))
        return status, name, (read_summary(folder) or {}) if status["state"] == "done" else {}
    except (OSError, RecordError) as error:
        return {"state": "unreadable", "error": str(error)}, folder.name, {}


def _without_process(
    status: dict[str, Any], *, lives: bool, may_be_back: bool, job: slurm.SlurmJob | None
) -> tuple[str, str | None]:
    """Return the state of a run that no process has, and why; its record says what it was when one had it.

    ``lives``: its job does; ``may_be_back``: so that it may begin anew, since its job can be seen from here.
    """
    state, why = status["state"], status.get("error")
    is_over = job is not None and not job.is_alive
    if state == "running" and may_be_back:
        return "queued", why  # it was killed, and its job is in the queue again or has just been started again
    if state == "running":
        told = f"its process is gone (host {status.get('host')}, process {status.get('pid')})"
        return LOST, f"SLURM says {job.state}" if job is not None and is_over else told
    if state == "queued" and not lives:
        return LOST, f"SLURM says {job.state}" if job is not None and is_over else "its job is gone"
    if state == "preempted" and job is not None and is_over:
        return state, f"{why}; its job is over: SLURM says {job.state}"
    return state, why


def _lives(launch: dict[str, Any], jobs: dict[str, slurm.SlurmJob] | None) -> bool:
    """Say whether the job of a run runs or will run, as far as can be seen; if it cannot, it may."""
    is_new: bool = time.time() - launch.get("submitted", 0) < _STARTUP_S
    if launch.get("job") is None:  # it is being submitted; unless that was cut off
        return is_new
    if launch.get("cluster") == "slurm":
        if jobs is None:
            return True
        job = jobs.get(str(launch["job"]))
        return job.is_alive if job is not None else is_new  # which SLURM may not know yet
    if launch.get("cluster") == "local":
        return _process_lives(launch)
    return False


def _process_lives(launch: dict[str, Any]) -> bool:
    """Say whether a local job's process is alive; the start time tells it from another one of the same number."""
    if launch.get("host") != os.uname().nodename:
        return True  # it cannot be seen from here
    return process_started(int(launch["job"])) == launch.get("process_started")


def process_started(pid: int) -> str | None:
    """Return when a process of this machine was started, in ticks; None if there is none (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _eta(status: dict[str, Any]) -> float | None:
    """Return the seconds to go, at the speed of this attempt so far."""
    steps = status.get("step", 0) - status.get("started_step", 0)
    if steps <= 0 or not status.get("total_steps") or "started" not in status:
        return None
    seconds = status["heartbeat"] - status["started"]
    return float(seconds / steps * (status["total_steps"] - status["step"]))


def _last_accuracy(folder: Path) -> float | None:
    """Return the last validation accuracy in the history, without reading all of it."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if b'"val/accuracy"' in line:
            try:
                value = json.loads(line)["val/accuracy"]
                return None if value is None else float(value)
            except (ValueError, TypeError, KeyError):  # torn, or damaged: not worth losing sight of the run
                continue
    return None
