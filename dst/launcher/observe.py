"""Observing runs from outside: by their records, their locks, and what SLURM says about their jobs."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dst.launcher import slurm
from dst.records.lock import STALE_S, Holder, holder, this_host
from dst.records.read import read_launch, read_run, read_status, read_summary
from dst.records.states import State
from dst.records.store import RecordError
from dst.records.swept import recorded_name

JOB_FILES: Final = ".launch"
"""The folder below an output root with the logs of jobs. A command that submits runs holds its lock."""

_MAY_WAIT: Final = frozenset(
    {State.QUEUED, State.PREEMPTED, State.CANCELLED, State.UNKNOWN, State.LOST, State.UNREADABLE}
)
"""States in which a run may wait for its job. A cancelled one too: its job may begin it before it hears of that."""

_WITHOUT_REASON: Final = frozenset({State.RUNNING, State.QUEUED, State.SUBMITTING, State.DONE})
"""States that need no explanation."""

NO_ANSWER: Final = "no answer"
"""What stands for SLURM's word where SLURM cannot be asked."""

_TAIL_BYTES: Final = 65536


@dataclass(frozen=True)
class Observed:
    """One run. ``state``: the recorded one, or what is true now if the record is out of date.

    ``val_accuracy``: the last one measured or, once done, that of the weights that are tested; ``test_accuracy``: once
    done. ``eta_s``: seconds to go. ``job_runs``: how many runs its job was given. ``slurm``: the state of its job in
    SLURM's own words, ``NO_ANSWER`` if SLURM cannot be asked; ``reason``: what it waits for, also SLURM's. ``host``:
    where the state was recorded. ``is_taken``: a process or a job carries it out or will do so, or a command is about
    to submit it. ``has_job``: its job runs or will run. ``why``: why it failed or stopped.
    ``created``: when its record was made, which orders the cells of a sweep.
    """

    folder: str
    name: str
    state: State
    attempt: int
    step: int
    total_steps: int | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    eta_s: float | None = None
    cluster: str | None = None
    job: str | None = None
    job_runs: int = 1
    slurm: str | None = None
    reason: str | None = None
    host: str | None = None
    is_taken: bool = False
    has_job: bool = False
    why: str | None = None
    created: str | None = None


def observe(folders: Iterable[Path]) -> list[Observed]:
    """Observe these runs. SLURM is asked once for all of them, and once more for those submitted in the meantime."""
    launches = {folder: _launch(folder) for folder in folders}
    jobs = slurm.jobs(at["job"] for at in launches.values() if at.get("cluster") == "slurm" and at.get("job"))
    submitters = {parent: tuple(_submitters(parent)) for parent in {folder.parent for folder in launches}}
    observed = {folder: _observed(folder, at, jobs, submitters[folder.parent]) for folder, at in launches.items()}
    idle = [folder for folder, run in observed.items() if not run.is_taken and run.state in _IDLE]
    if again := [folder for folder in idle if _launch(folder) != launches[folder]]:
        observed |= dict(zip(again, observe(again), strict=True))
    return list(observed.values())


_IDLE: Final = frozenset({State.NOT_SUBMITTED, State.CANCELLED, State.UNKNOWN, State.LOST})
"""What a run seems to be if its record was read before a change, and its job or its submitter looked for after it."""


def _launch(folder: Path) -> dict[str, Any]:
    try:
        return read_launch(folder) or {}
    except (OSError, RecordError) as error:
        return {"damaged": str(error)}


def _submitters(group: Path) -> Iterator[Holder]:
    """Yield the other commands that are submitting runs to the output root of a group."""
    for root in (group.resolve(), *group.resolve().parents):
        found = holder(root / JOB_FILES) if (root / JOB_FILES / "lock").exists() else None
        if found is not None and (found.host, found.pid) != (this_host(), os.getpid()):
            yield found


def _observed(
    folder: Path, launch: dict[str, Any], jobs: dict[str, slurm.SlurmJob] | None, submitters: tuple[Holder, ...]
) -> Observed:
    status, name, created, summary = _recorded(folder)
    if "damaged" in launch:
        status = {**status, "state": State.UNREADABLE, "error": launch["damaged"]}
    job = (jobs or {}).get(str(launch.get("job")))
    is_held = holder(folder) is not None
    has_job = _lives(launch, jobs) and (is_held or not _is_forsaken(status, launch))
    state, why = status["state"], status.get("error")
    if not is_held and _is_unsubmitted(state, launch):
        state, why = _unsubmitted(status, submitters)
    elif not is_held:
        may_be_back = has_job and (job is not None or launch.get("host") == this_host())
        state, why = _without_process(status, lives=has_job, may_be_back=may_be_back, job=job)
    if state == State.LOST and (logs := _logs(folder, launch)):
        why = f"{why}; see {', '.join(map(str, logs))}"
    waits = state in _MAY_WAIT and has_job
    return Observed(
        folder=str(folder),
        name=name,
        state=state,
        attempt=status.get("attempt", 0),
        step=status.get("step", 0),
        total_steps=status.get("total_steps"),
        val_accuracy=_last_accuracy(folder) if not summary else summary.get("val/accuracy"),
        test_accuracy=summary.get("test/accuracy"),
        eta_s=_eta(status) if state == State.RUNNING else None,
        cluster=launch.get("cluster"),
        job=launch.get("job"),
        job_runs=launch.get("runs", 1),
        slurm=_word(launch, jobs),
        reason=None if job is None else job.reason,
        host=status.get("host"),
        is_taken=is_held or waits or state == State.SUBMITTING,
        has_job=has_job,
        why=None if state in _WITHOUT_REASON else why,
        created=created,
    )


def _recorded(folder: Path) -> tuple[dict[str, Any], str, str | None, dict[str, Any]]:
    """Return a run's status, name, beginning and, if it is done, its final figures, as far as they can be read."""
    try:
        status = read_status(folder) or {"state": State.UNKNOWN}
        about, summary = read_run(folder), (read_summary(folder) or {}) if status["state"] == State.DONE else {}
        return status, recorded_name(about, folder.name), about.get("created"), summary
    except (OSError, RecordError) as error:
        return {"state": State.UNREADABLE, "error": str(error)}, folder.name, None, {}


def _is_unsubmitted(state: State, launch: dict[str, Any]) -> bool:
    """Say whether the record of a run says that it was to be submitted, but names no job."""
    return state == State.SUBMITTING or (state in (State.QUEUED, State.UNKNOWN) and launch.get("job") is None)


def _unsubmitted(status: dict[str, Any], submitters: tuple[Holder, ...]) -> tuple[State, str | None]:
    """Return the state of a run that was to be submitted, and why it was not, if no command is submitting it."""
    host, pid = status.get("host"), status.get("pid")
    if status["state"] == State.UNKNOWN:  # it has just been made, or its maker was killed right then
        return (State.SUBMITTING if submitters else State.UNKNOWN), None
    if any((submitter.host, submitter.pid) == (host, pid) for submitter in submitters):
        return State.SUBMITTING, None
    return State.NOT_SUBMITTED, f"the command that was submitting it is gone (host {host}, process {pid})"


def _without_process(
    status: dict[str, Any], *, lives: bool, may_be_back: bool, job: slurm.SlurmJob | None
) -> tuple[State, str | None]:
    """Return the state of a run that no process carries out, and why. Its record says what it was before that.

    ``lives``: its job is alive. ``may_be_back``: this can be seen from here, so the job may begin the run again.
    """
    state, why = status["state"], status.get("error")
    is_over = job is not None and not job.is_alive
    if state == State.RUNNING and may_be_back:
        return State.QUEUED, why  # it was killed, and its job waits or has just started again
    if state == State.RUNNING:
        told = f"its process is gone (host {status.get('host')}, process {status.get('pid')})"
        return State.LOST, f"SLURM says {job.state}" if job is not None and is_over else told
    if state == State.QUEUED and not lives:
        told = f"SLURM says {job.state}" if job is not None and is_over else "its job is gone"
        is_cancelled = job is not None and job.state == "CANCELLED"
        return State.CANCELLED if is_cancelled else State.LOST, told
    if state == State.PREEMPTED and job is not None and is_over:
        return state, f"{why}; its job is over: SLURM says {job.state}"
    return state, why


def _word(launch: dict[str, Any], jobs: dict[str, slurm.SlurmJob] | None) -> str | None:
    """Return SLURM's word for the state of a run's job; None if it has no job there, or SLURM does not know it."""
    if launch.get("cluster") != "slurm" or launch.get("job") is None:
        return None
    if jobs is None:
        return NO_ANSWER
    return jobs[launch["job"]].state if launch["job"] in jobs else None


def _logs(folder: Path, launch: dict[str, Any]) -> list[Path]:
    """Return the logs in which a lost run's last words may be: its own, and that of its job, with those of SLURM."""
    if launch.get("job") is None:
        return []
    of_job = Path(launch["logs"], f"{launch['job']}_0_log.out") if "logs" in launch else None
    return [path for path in (folder / "log.txt", of_job) if path is not None and path.is_file()]


def _lives(launch: dict[str, Any], jobs: dict[str, slurm.SlurmJob] | None) -> bool:
    """Say whether the job of a run runs or will run; yes if that cannot be found out."""
    if launch.get("job") is None:
        return False
    if launch.get("cluster") == "slurm":
        job = None if jobs is None else jobs.get(str(launch["job"]))
        return jobs is None or (job is not None and job.is_alive)
    return launch.get("cluster") == "local" and process_lives(launch)


def _is_forsaken(status: dict[str, Any], launch: dict[str, Any]) -> bool:
    """Say whether an unlocked run shows that its local job on another host is gone: its heartbeat has stopped."""
    is_elsewhere = launch.get("cluster") == "local" and launch.get("host") != this_host()
    is_silent = abs(time.time() - status.get("heartbeat", 0.0)) > STALE_S  # one of the future is as good as none
    return is_elsewhere and status["state"] == State.RUNNING and is_silent


def process_lives(launch: dict[str, Any]) -> bool:
    """Say whether a local job's process is alive. Its start time tells it from a later process of the same number."""
    if launch.get("host") != this_host():
        return True  # this cannot be seen from here
    started = process_started(int(launch["job"]))
    return started is not None and started == launch.get("process_started")


def process_started(pid: int) -> str | None:
    """Return when a process of this machine was started, in ticks; None if there is none, or it is a zombie."""
    fields = process_fields(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def process_fields(pid: int) -> list[str]:
    """Return what Linux says of a process of this machine, from its state and its parent on; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _eta(status: dict[str, Any]) -> float | None:
    """Return the seconds to go, judged by the speed of this attempt so far."""
    steps = status.get("step", 0) - status.get("started_step", 0)
    if steps <= 0 or not status.get("total_steps") or "started" not in status:
        return None
    # Dates of earlier versions of this code may lie in the wrong order: the clock was set back in between.
    seconds = status["elapsed_s"] if "elapsed_s" in status else status.get("heartbeat", 0.0) - status["started"]
    if seconds <= 0:
        return None
    return float(seconds / steps * (status["total_steps"] - status["step"]))


def _last_accuracy(folder: Path) -> float | None:
    """Return the last validation accuracy in the history, read from its end only."""
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
            except (ValueError, TypeError, KeyError, OverflowError):  # a damaged line must not hide the run
                continue
    return None
