"""What SLURM says about jobs, by its own commands. Everything works without them, too."""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import cache

_TIMEOUT_S = 60.0
_DEFAULT_MAX_ARRAY = 1001

ALIVE = frozenset(
    {
        *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
        *("RESIZING", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"),
    }
)
"""States of jobs that run or will run."""


@dataclass(frozen=True)
class SlurmJob:
    """A job. ``state``: SLURM's name, e.g. PENDING; ``exit_code``: ``code:signal`` if the job has ended.

    ``reason``: SLURM's name for what a job waits for, e.g. Priority.
    """

    state: str
    exit_code: str = ""
    reason: str | None = None

    @property
    def is_alive(self) -> bool:
        """Say whether the job runs or will run."""
        return self.state in ALIVE


def available() -> bool:
    """Say whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def jobs(ids: Iterable[str]) -> dict[str, SlurmJob] | None:
    """Return those of these jobs (``12`` or, of an array, ``12_3``) that SLURM knows.

    Only the queue says which jobs are alive; the accounting, if there is one, remembers those that have ended. None if
    the queue cannot be asked: there is no SLURM here, or it does not answer.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    text = _output("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%r")
    if text is None:
        return None
    queue = {job: _queued(state, reason) for job, state, reason in _rows(3, text)}
    queued = _of_each(wanted, queue)
    alive = {job: found for job, found in queued.items() if found.is_alive}
    accounts = _accounting(wanted - alive.keys())
    if accounts is None:  # then it is not known whether and how a task that is not listed has ended
        return queued
    return {**_forgotten(wanted, [*queue, *accounts]), **queued, **_of_each(wanted, accounts), **alive}


def _queued(state: str, reason: str) -> SlurmJob:
    return SlurmJob(state, reason=reason if state == "PENDING" and reason not in ("", "None") else None)


def _accounting(wanted: Set[str]) -> dict[str, SlurmJob] | None:
    """Return what the accounting says about jobs that are not in the queue any more, and so cannot be alive.

    None if there is no accounting, or it does not answer.
    """
    if not wanted:
        return {}
    parents = ",".join(sorted({_parent(job) for job in wanted}))
    text = _output("sacct", "-X", "-n", "-P", f"--jobs={parents}", "--format=JobID,State,ExitCode")
    if text is None:
        return None
    # A state may carry more, as in "CANCELLED by 1000".
    listed = {job: SlurmJob(state.split()[0], code) for job, state, code in _rows(3, text) if state}
    return {job: found for job, found in listed.items() if not found.is_alive}


def _of_each(wanted: Set[str], listed: Mapping[str, SlurmJob]) -> dict[str, SlurmJob]:
    """Return the listed state of each wanted job; tasks that never began share one record, ``12_[0-5%2]``."""
    found = {job: state for job, state in listed.items() if job in wanted}
    parents = {_parent(job) for job in wanted - found.keys()}
    for job, state in listed.items():
        parent, _, tasks = job.partition("_[")
        if tasks and parent in parents:
            these = {f"{parent}_{task}" for task in _numbers(tasks.partition("%")[0])}
            found = {**dict.fromkeys(these & wanted, state), **found}
    return found


def _forgotten(wanted: Set[str], listed: Iterable[str]) -> dict[str, SlurmJob]:
    """Return the tasks that are not listed, although their array or another task of it is: they were cancelled.

    SLURM keeps no record of tasks that were cancelled one by one while they waited.
    """
    arrays = {_parent(job) for job in listed}
    return {job: SlurmJob("CANCELLED") for job in wanted if "_" in job and _parent(job) in arrays}


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of a list such as ``0-3,7,10-20:5``."""
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", text):
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _parent(job: str) -> str:
    """Return the id of the array to which a task belongs; for any other job, its own id."""
    return job.partition("_")[0]


def _rows(columns: int, text: str) -> list[list[str]]:
    """Return the rows of a table with cells separated by ``|``, which the last one may have in it."""
    rows = [line.strip().split("|", columns - 1) for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]


def _output(*command: str) -> str | None:
    """Return what a SLURM command prints, None if it fails."""
    whole = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # otherwise SLURM cuts off long lists of tasks
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S, env=whole).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def max_array_size() -> int:
    """Return how many jobs an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found[1]) if found else _DEFAULT_MAX_ARRAY)


@dataclass(frozen=True)
class Notice:
    """A running job that got a signal. ``left_s``: seconds to its time limit, negative beyond it."""

    is_preemption: bool
    left_s: float


def notice(job: str) -> Notice | None:
    """Return why a running job may have got a signal; None if SLURM cannot be asked."""
    fields: dict[str, str] = dict(re.findall(r"(\w+)=(\S*)", _output("scontrol", "show", "job", job) or ""))
    if not {"StartTime", "EndTime"} <= fields.keys():
        return None
    # SLURM shows this time only for jobs in partitions that can be preempted. A time before the job's start is that of
    # an earlier preemption, after which the job was requeued.
    preempt_time = fields.get("PreemptTime", "None")
    preempted = preempt_time[:1].isdigit() and preempt_time >= fields["StartTime"]
    try:
        left = datetime.fromisoformat(fields["EndTime"]).timestamp() - time.time()
    except ValueError:  # a job without a limit
        left = math.inf
    return Notice(preempted, left)


def cancel(ids: Iterable[str]) -> dict[str, str]:
    """Cancel jobs, the tasks of an array by one call; return what SLURM says against it, by job.

    If SLURM does not answer one call, it is not asked again: each may take a minute.
    """
    refused: dict[str, str] = {}
    silent: str | None = None
    for jobs, named in _by_array(ids).items():
        try:
            why = silent or _scancel(named)
        except subprocess.TimeoutExpired:
            why = silent = f"scancel: SLURM does not answer within {_TIMEOUT_S:.0f} s; look later, and cancel again"
        except OSError as error:
            why = silent = f"scancel: {error}"
        if why is not None:
            refused |= dict.fromkeys(_named_in(why, jobs) or jobs, why)
    return refused


def _scancel(jobs: Sequence[str]) -> str | None:
    """Return what SLURM says against cancelling these jobs."""
    done = subprocess.run(["scancel", *jobs], check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    told = "; ".join(done.stderr.split("\n")).strip("; ")
    return told or f"scancel exits with {done.returncode}" if done.returncode else None


def _named_in(text: str, jobs: Iterable[str]) -> list[str]:
    """Return the jobs that a message is about; none if it names none."""
    return [job for job in jobs if re.search(rf"\b{job}\b", text)]


def _by_array(ids: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Return jobs as ``scancel`` takes them in one call: the tasks of an array, and all jobs that belong to none.

    The tasks are one word: ``12_[0,2,3]``.
    """
    arrays: dict[str, list[str]] = {}
    for job in sorted(ids):
        arrays.setdefault(_parent(job) if "_" in job else "", []).append(job)
    return {
        tuple(jobs): [f"{parent}_[{','.join(job.partition('_')[2] for job in jobs)}]"] if parent else jobs
        for parent, jobs in arrays.items()
    }


def rename(job: str, name: str) -> None:
    """Give a job its name in the queue. If SLURM refuses, it keeps the old one."""
    _output("scontrol", "update", f"JobId={job}", f"JobName={name}")
