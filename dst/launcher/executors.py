"""Submitting frozen runs through submitit: to SLURM as few job arrays, or on this machine as one job."""

import math
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from dst.config.launcher import LauncherSettings
from dst.config.schema import Hardware
from dst.launcher import slurm
from dst.launcher.job import FrozenRun, Job, visible_gpus
from dst.launcher.observe import JOB_FILES, process_started
from dst.launcher.request import Run, batches, imports, jobs_of, sbatch_parameters, undisturbed
from dst.records.lock import this_host
from dst.records.restate import restate
from dst.records.states import State
from dst.records.store import Record, RecordError
from dst.signals import REQUESTS, blocked

_FOREVER_MIN: Final = 60 * 24 * 365
"""Jobs on this machine have no time limit."""

_REFUSALS: Final = (OSError, FailedJobError, FailedSubmissionError)

_TOO_MANY: Final = re.compile(r"MaxSubmit|submit limit|unable to accept job|temporarily unavailable", re.IGNORECASE)
_NAMED_LIMIT: Final = re.compile(r"\b(?:QOS|Assoc)\w+")
"""SLURM's name of the limit that was met, e.g. ``QOSMaxSubmitJobPerUserLimit``. What else it says fits several."""

_REMEDY: Final = (
    "so many jobs may not be in the queue: with hydra.launcher.max_submitted=N a command submits at most N jobs, which "
    "take the runs one after another; with hydra.launcher.runs_per_job=K each has K runs at once"
)


class SubmissionError(RuntimeError):
    """A job was not taken. The jobs that were submitted before it go on. ``remedy``: how to stay below a limit."""

    def __init__(self, told: str, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(told)


@dataclass(frozen=True)
class Submission:
    """What was submitted: ids of jobs and arrays, and the folder of their logs and of submitit's files."""

    jobs: list[str]
    logs: Path


def send(runs: Sequence[Run], settings: LauncherSettings, *, root: Path, code: Path) -> Submission:
    """Submit runs, and write the job of each into its ``launch.json``.

    ``root``: the logs go to ``.launch`` below it. ``code``: the folder from which the jobs import the package.
    Raises SubmissionError.
    """
    logs = root.resolve() / JOB_FILES / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    logs.mkdir(parents=True)
    to_cluster = _to_slurm if settings.cluster == "slurm" else _to_this_machine
    try:
        return Submission(list(to_cluster(runs, settings, logs, code)), logs)
    except _REFUSALS as error:
        told = " ".join(str(error).split())
        remedy = _REMEDY if settings.cluster == "slurm" and is_too_many(told) else ""
        raise SubmissionError(f"{settings.cluster} did not take the job: {told}", remedy) from error


def is_too_many(refusal: str) -> bool:
    """Say whether SLURM refuses a job since there are too many in the queue."""
    named = _NAMED_LIMIT.search(refusal)
    return _TOO_MANY.search(named[0] if named else refusal) is not None


# ---------------------------------------------------------------------------------------------------------------------
# SLURM


def _to_slurm(runs: Sequence[Run], settings: LauncherSettings, logs: Path, code: Path) -> Iterator[str]:
    arrays = [
        (array, hardware)
        for packed, hardware in jobs_of(runs, settings)
        for array in batches(packed, slurm.max_array_size())
    ]
    # SLURM limits how many tasks run at once for each array separately, so each array gets its share. If there are more
    # arrays than that, an array waits for an earlier one.
    throttle = None if settings.max_parallel is None else max(1, settings.max_parallel // len(arrays))
    ids: list[str] = []
    for array, hardware in arrays:
        # Each round of runs of a job may take it as many requeues as a single run may.
        max_requeues = hardware.slurm.max_requeues * math.ceil(len(array[0]) / settings.runs_per_job)
        jobs = [
            Job(
                packed,
                parallel=settings.runs_per_job,
                processes=hardware.processes,
                max_requeues=max_requeues,
                signal_delay_s=hardware.slurm.signal_delay_s,
                cuda=hardware.device == "cuda",
            )
            for packed in array
        ]
        executor = SlurmExecutor(logs, max_num_timeout=max_requeues, python=hardware.slurm.python)
        # All jobs of an array have one name in the queue. Each takes its own name when it starts.
        name = jobs[0].title if len(jobs) == 1 else Path(array[0][0].folder).parent.name
        lanes = settings.max_parallel or len(arrays)
        earlier = ids[-lanes] if len(ids) >= lanes else None
        asked = sbatch_parameters(hardware, settings.runs_per_job, code, throttle, after=earlier)
        executor.update_parameters(**asked, job_name=name)
        with _handing_over(jobs, settings):
            with undisturbed(asked), blocked(REQUESTS):  # Ctrl-C in the terminal would end sbatch half-way
                submitted = executor.submit_array(jobs) if len(jobs) > 1 else [executor.submit(jobs[0])]
            for job, found in zip(jobs, submitted, strict=True):
                _note(job.runs, settings, job=found.job_id, logs=str(logs), code=str(code))
        ids.append(submitted[0].job_id.partition("_")[0])
        yield ids[-1]


# ---------------------------------------------------------------------------------------------------------------------
# This machine


def _to_this_machine(runs: Sequence[Run], settings: LauncherSettings, logs: Path, code: Path) -> Iterator[str]:
    """Start one job in the background that has all runs and carries out a limited number of them at once."""
    by_processes: dict[int, list[Run]] = {}
    for run, config in runs:
        by_processes.setdefault(config.hardware.processes, []).append((run, config))
    for processes, same in by_processes.items():
        gpus = visible_gpus()
        job = Job(
            tuple(run for run, _ in same),
            parallel=1 if processes > 1 else _at_a_time(settings, [config.hardware for _, config in same], gpus),
            processes=processes,
            gpus=gpus,
            cuda=any(config.hardware.device == "cuda" for _, config in same),
        )
        executor = LocalExecutor(logs)
        executor.update_parameters(timeout_min=_FOREVER_MIN, tasks_per_node=processes, stderr_to_stdout=True)
        with _handing_over([job], settings):
            with _in_background(code, logs / "controller.log"):
                found = executor.submit(job)
            facts = {"host": this_host(), "process_started": process_started(int(found.job_id))}
            _note(job.runs, settings, job=found.job_id, logs=str(logs), code=str(code), **facts)
        yield found.job_id


def _at_a_time(settings: LauncherSettings, wanted: Sequence[Hardware], gpus: Sequence[str]) -> int:
    """Return how many runs go on at once: as many as the settings say, or as the processors and GPUs allow."""
    if settings.max_parallel is not None:
        return settings.max_parallel * settings.runs_per_job
    each = max(hardware.threads + hardware.workers for hardware in wanted) * settings.runs_per_job
    jobs = max(1, len(os.sched_getaffinity(0)) // each)
    if gpus and any(hardware.device == "cuda" for hardware in wanted):
        jobs = min(jobs, len(gpus))
    return jobs * settings.runs_per_job


@contextmanager
def _in_background(code: Path, log: Path) -> Iterator[None]:
    """Start processes within this block that import the frozen package and outlive this terminal.

    They inherit ignored signals, and they do not hold this process's streams: readers may wait for those to end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    streams = [os.dup(number) for number in range(3)]
    with log.open("ab") as output, open(os.devnull, "rb") as nothing:
        for number, target in enumerate((nothing, output, output)):
            os.dup2(target.fileno(), number)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    outside = {name: os.environ.get(name) for name in imports(code)}
    os.environ.update(imports(code))
    try:
        yield
    finally:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        for number, handler in before.items():
            signal.signal(number, handler)
        for name, value in outside.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


# ---------------------------------------------------------------------------------------------------------------------
# Both


@contextmanager
def _handing_over(jobs: Sequence[Job], settings: LauncherSettings) -> Iterator[None]:
    """Mark runs as queued before their job can begin them, and let no request to stop in until the job is recorded.

    Requests such as Ctrl-C wait until the end of the block: a job without a record would be submitted a second time.
    """
    asked: list[int] = []
    heeded = [number for number in REQUESTS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in heeded}
    try:
        runs = [run for job in jobs for run in job.runs]
        submitted_before = [run for run in runs if Path(run.folder, "launch.json").exists()]
        _note(submitted_before, settings, job=None)  # they have left their last job
        _each(runs, partial(restate, state=State.QUEUED, durable=False))
        try:
            yield
        except _REFUSALS:
            _note(runs, settings, job=None)  # so that they can be submitted again in the same way
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])


def _note(runs: Sequence[FrozenRun], settings: LauncherSettings, **facts: Any) -> None:
    """Record which job carries out these runs."""
    common = {"cluster": settings.cluster, "submitted": time.time(), "settings": asdict(settings)}
    launch = {**common, "cwd": os.getcwd(), "runs": len(runs), **facts}
    _each(runs, lambda folder: Record.open(folder, durable=False).write_launch(launch))


def _each(runs: Sequence[FrozenRun], act: Callable[[Path], Any]) -> None:
    """Act on the folder of each run. Trouble with one is a warning and does not affect the others."""
    for run in runs:
        try:
            act(Path(run.folder))
        except (OSError, RecordError) as error:
            print(f"warning: the record of {run.folder} could not be written: {error}", file=sys.stderr)
