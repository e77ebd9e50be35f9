"""What SLURM says of jobs, through its own commands; everything works without them too."""

import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
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
    """``state`` as SLURM names it, e.g. PENDING; ``exit_code`` as ``code:signal``, if the job has ended."""

    state: str
    exit_code: str = ""

    @property
    def is_alive(self) -> bool:
        """Say whether the job runs or will run."""
        return self.state in ALIVE


def available() -> bool:
    """Say whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def jobs(ids: Iterable[str]) -> dict[str, SlurmJob] | None:
    """Return what is known of these jobs (``12`` or, of an array, ``12_3``), as far as SLURM knows them.

    The queue knows best what lives; the accounting, where there is one, remembers what has ended. None if the queue
    cannot be asked: no SLURM here, or none that answers.
    """
    wanted = set(ids)
    if not wanted:
        return {}
    text = _output("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T")
    if text is None:
        return None
    rows = _rows(2, text)
    queued = {job: SlurmJob(state) for job, state in rows if job in wanted}
    alive = {job: found for job, found in queued.items() if found.is_alive}
    return {**queued, **_accounting(wanted - alive.keys()), **alive}


def _accounting(wanted: set[str]) -> dict[str, SlurmJob]:
    if not wanted or shutil.which("sacct") is None:
        return {}
    parents = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    rows = _rows(3, _output("sacct", "-X", "-n", "-P", f"--jobs={parents}", "--format=JobID,State,ExitCode") or "")
    # A state may carry more, as in "CANCELLED by 1000".
    return {job: SlurmJob(state.split()[0], code) for job, state, code in rows if job in wanted and state}


def _rows(columns: int, text: str) -> list[list[str]]:
    """Return the rows of a table whose cells are parted by ``|``."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row for row in rows if len(row) == columns]


def _output(*command: str) -> str | None:
    """Return what a SLURM command prints, None if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def max_array_size() -> int:
    """Return how many jobs an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config") or "", re.MULTILINE)
    return max(1, int(found[1]) if found else _DEFAULT_MAX_ARRAY)


@dataclass(frozen=True)
class Notice:
    """What is known of a running job that was signalled. ``left_s``: seconds to its time limit, negative beyond it."""

    is_preemption: bool
    left_s: float


def notice(job: str) -> Notice | None:
    """Return why a running job may have been signalled; None if SLURM cannot be asked."""
    fields: dict[str, str] = dict(re.findall(r"(\w+)=(\S*)", _output("scontrol", "show", "job", job) or ""))
    if not {"PreemptTime", "StartTime", "EndTime"} <= fields.keys():
        return None
    # It was earlier, before the job was requeued, if not since the job has started.
    preempted = fields["PreemptTime"][:1].isdigit() and fields["PreemptTime"] >= fields["StartTime"]
    try:
        left = datetime.fromisoformat(fields["EndTime"]).timestamp() - time.time()
    except ValueError:  # a job without a limit
        left = math.inf
    return Notice(preempted, left)


def cancel(ids: Iterable[str]) -> str | None:
    """Cancel jobs; return what SLURM says if it refuses."""
    done = subprocess.run(["scancel", *ids], check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    return done.stderr.strip() or f"scancel exits with {done.returncode}" if done.returncode else None


def rename(job: str, name: str) -> None:
    """Give a job a name for people who look at the queue; where that cannot be done it keeps the one it has."""
    _output("scontrol", "update", f"JobId={job}", f"JobName={name}")
