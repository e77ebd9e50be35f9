"""From the cells of a sweep to submitted jobs: what is over or under way is left alone, the rest is frozen and sent."""

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dst import app
from dst.app import Cell
from dst.config import Config, ConfigError
from dst.launcher.frozen import freeze, frozen_code
from dst.launcher.job import FrozenRun
from dst.launcher.seen import Seen, look
from dst.launcher.settings import LauncherSettings
from dst.launcher.submit import Submission, SubmissionError, note, submit
from dst.recording import check_continuable, check_unchanged
from dst.records.read import read_launch, read_status
from dst.records.store import Record

_POLL_S: Final = 2.0
_REST: Final = 20.0
"""Rest so many times as long as a look took: waiting for a thousand runs must not keep a login node busy."""
_SLURM_POLL_S: Final = 5.0
"""A controller serves many users."""


@dataclass(frozen=True)
class Launched:
    """What a command has done: run folders in the order of its cells, those submitted, and how."""

    folders: list[Path]
    submitted: list[Path]
    submission: Submission | None


def launch(cells: Sequence[Cell], settings: LauncherSettings, command: str) -> Launched:
    """Submit the cells that are neither over nor under way.

    Raises ConfigError if a cell cannot be recorded, SubmissionError if a job is not taken.
    """
    with _submitting({Path(cell.config.output.root) for cell in cells}):
        return _launch(app.looked_up(cells), settings, command)


def _launch(cells: Sequence[Cell], settings: LauncherSettings, command: str) -> Launched:
    taken = {Path(seen.folder) for seen in look([cell.found for cell in cells if cell.found]) if seen.is_taken}
    todo = [cell for cell in cells if not (cell.is_over or (cell.state != "new" and cell.found in taken))]
    _check_continuable(todo)
    for root in {cell.config.output.root for cell in todo}:
        frozen_code(Path(root))  # before anything is on record: the code may be edited at any time
    app.enter(cells, command)
    frozen = {id(cell): freeze(cell, command) for cell in todo}
    folders = [Path(frozen[id(cell)].folder) if id(cell) in frozen else _found(cell) for cell in cells]
    runs = [(frozen[id(cell)], cell.config) for cell in todo]
    submission = resubmit(runs, settings) if runs else None
    return Launched(folders, [Path(run.folder) for run, _ in runs], submission)


@contextmanager
def _submitting(roots: Iterable[Path]) -> Iterator[None]:
    """Let one command at a time decide what is to be submitted below these folders, and submit it."""
    with ExitStack() as stack:
        for root in sorted(root.resolve() for root in roots):
            try:
                (root / ".launch").mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context((root / ".launch" / "lock").open("w"))
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                    raise ConfigError([f"output.root={root}: cannot write there: {error}"]) from error
        yield


def _check_continuable(cells: Sequence[Cell]) -> None:
    problems = []
    for cell in cells:
        if cell.state != "new" and cell.found is not None:
            try:
                check_continuable(cell.found, strict=cell.config.hardware.determinism == "strict")
                check_unchanged(cell.found, cell.config)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


def resubmit(runs: Sequence[tuple[FrozenRun, Config]], settings: LauncherSettings) -> Submission:
    """Submit runs that have been frozen."""
    root = Path(runs[0][1].output.root)
    note([run for run, _ in runs], settings, job=None)  # that others see them taken meanwhile
    os.sync()
    try:
        return submit(runs, settings, root=root, code=frozen_code(root))
    except SubmissionError as error:
        for run, _ in runs:
            _mark_unsubmitted(Path(run.folder), str(error))
        raise


def _mark_unsubmitted(folder: Path, error: str) -> None:
    """Put on record that no job will carry a run out, unless one will."""
    status = read_status(folder) or {}
    if (read_launch(folder) or {}).get("job") is None and status.get("state") == "queued":
        Record.open(folder).write_status("failed", attempt=status["attempt"], step=status["step"], error=error)


def relaunch(cells: Sequence[Cell], settings: LauncherSettings, states: Sequence[str]) -> Submission | None:
    """Submit runs of these states again, with the configs frozen in their folders (``verified.frozen_config``).

    Raises ConfigError if one cannot be continued as it was begun, SubmissionError if a job is not taken; None if there
    is nothing to submit.
    """
    with _submitting({Path(cell.config.output.root) for cell in cells}):
        seen = zip(cells, look([_found(cell) for cell in cells]), strict=True)
        todo = [cell for cell, run in seen if run.state in states and not run.is_taken]
        _check_continuable(todo)
        runs = [(freeze(cell, ""), cell.config) for cell in todo]
        return resubmit(runs, settings) if runs else None


def _found(cell: Cell) -> Path:
    assert cell.found is not None
    return cell.found


def wait(folders: Sequence[Path]) -> list[Seen]:
    """Return what is seen of runs once no job carries any of them out any more."""
    while True:
        began = time.monotonic()
        seen = look(folders)
        if not any(run.is_taken for run in seen):
            return seen
        least = _SLURM_POLL_S if any(run.cluster == "slurm" for run in seen) else _POLL_S
        time.sleep(max(least, _REST * (time.monotonic() - began)))


def check_settings(settings: LauncherSettings, configs: Sequence[Config]) -> None:
    """Raise ConfigError if runs cannot be launched so."""
    from dst.launcher import slurm

    problems = settings.problems()
    if settings.cluster == "slurm" and not slurm.available():
        problems.append("hydra/launcher=slurm: there is no sbatch on this machine; use hydra/launcher=local or basic")
    for config in configs:
        hardware = config.hardware
        if hardware.processes > 1 and settings.runs_per_job > 1:
            problems.append(
                f"hydra.launcher.runs_per_job={settings.runs_per_job} and hardware.processes={hardware.processes}: "
                "only runs of one process share a job; set one of them to 1"
            )
        if hardware.processes > 1 and settings.cluster == "local" and (settings.max_parallel or 1) > 1:
            problems.append(
                f"hydra.launcher.max_parallel={settings.max_parallel} and hardware.processes={hardware.processes}: on "
                "one machine runs of several processes go one after another; leave max_parallel out"
            )
        if settings.cluster == "slurm" and hardware.processes % hardware.slurm.nodes:
            problems.append(
                f"hardware.slurm.nodes={hardware.slurm.nodes}: hardware.processes={hardware.processes} cannot be "
                "shared out evenly; choose a divisor of it"
            )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
