"""From the cells of a sweep to submitted jobs. Runs that are over or under way are left alone."""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from dst.config.identity import run_id
from dst.config.launcher import LauncherSettings
from dst.config.schema import Config, ConfigError
from dst.launcher.executors import Submission, SubmissionError, send
from dst.launcher.frozen import check_copy, freeze, freeze_again, frozen_code, submitted_code
from dst.launcher.observe import JOB_FILES, Observed, observe
from dst.launcher.request import Run, kind_of_job
from dst.records.lock import LockedError, locked
from dst.records.provenance import pasteable
from dst.records.read import read_launch, read_status
from dst.records.restate import restate
from dst.records.same import attempt_of, ranked
from dst.records.states import REQUEUED, STOPPED, State
from dst.records.store import RecordError
from dst.run.cell import Cell, enter, looked_up
from dst.run.look import look
from dst.run.resume import check_continuable, check_unchanged
from dst.words import few, some

_POLL_S: Final = 2.0
_REST: Final = 20.0
"""Rest this many times as long as observing took: waiting for a thousand runs must not keep a login node busy."""
_SLURM_POLL_S: Final = 5.0
"""SLURM's controller serves many users."""
_LOCK_POLL_S: Final = 0.2
_PATIENCE_S: Final = 5.0
"""How long this command waits for another submission before it says so."""
_LISTED: Final = 20
"""At most this many of the runs that were left alone are named."""

_Decision = Literal["to do", "finished", "under way"]


@dataclass(frozen=True)
class Submitted:
    """The outcome: folders of all cells, in order, those submitted, and the submission.

    ``left``: why the others could not be submitted, by folder. ``finished``, ``under_way``: how many did not need it.
    ``stopping``: how many of those under way are stopping, since their jobs have just been cancelled or preempted.
    """

    folders: list[Path]
    submitted: list[Path]
    submission: Submission | None
    left: dict[Path, str]
    finished: int = 0
    under_way: int = 0
    stopping: int = 0

    def told(self) -> str:
        """Return the message about the runs that could not be submitted; empty if there are none."""
        return _told(self.left)


def _told(left: Mapping[Path, str]) -> str:
    if not left:
        return ""
    lines = few([f"{folder}: {why}" for folder, why in left.items()], _LISTED)
    return "\n  ".join([f"left alone, since they cannot be submitted: {len(left)} runs", *lines])


def submit(cells: Sequence[Cell], settings: LauncherSettings, command: str) -> Submitted:
    """Submit the cells that are neither over nor under way; leave alone those that cannot be submitted.

    Raises ConfigError if nothing can be recorded, SubmissionError if a job is not taken.
    """
    with _submitting({Path(cell.config.output.root) for cell in cells}):
        return _submit(looked_up(cells), settings, command)


def _submit(cells: Sequence[Cell], settings: LauncherSettings, command: str) -> Submitted:
    observed = {Path(run.folder): run for run in observe([cell.found for cell in cells if cell.found])}
    left: dict[Path, str] = {}
    decided: dict[_Decision, dict[Path, Cell]] = {"to do": {}, "finished": {}, "under way": {}}
    for cell in cells:
        with _left_alone(_folder(cell), left):
            decision = "to do" if cell.found is None else _decision(cell, observed[cell.found])
            decided[decision][_folder(cell)] = cell
    todo = decided["to do"]
    # Before anything is recorded: the code may be edited at any time.
    code = {root: frozen_code(root) for root in dict.fromkeys(Path(cell.config.output.root) for cell in todo.values())}
    enter(cells, command)
    work = {folder: partial(_frozen, cell, command) for folder, cell in todo.items()}
    runs, submission = _send(work, settings, next(iter(code.values()), None), left)
    placed = {folder: Path(run.folder) for folder, (run, _) in runs.items()}
    folders = [placed.get(folder, folder) for folder in map(_folder, cells)]
    stopping = sum(run.is_taken and _is_stopping(run) for run in observed.values())
    return Submitted(
        folders,
        list(placed.values()),
        submission,
        left,
        finished=len(decided["finished"]),
        under_way=len(decided["under way"]),
        stopping=stopping,
    )


def _is_stopping(run: Observed) -> bool:
    """Say whether a run that is under way has been asked to stop; a local job never resumes what it has stopped."""
    is_stopped = run.state == State.CANCELLED or (run.state == State.PREEMPTED and run.cluster == "local")
    return run.slurm == "COMPLETING" or is_stopped


def _folder(cell: Cell) -> Path:
    """Return the folder of a run, or the one that it will get."""
    output = cell.config.output
    return cell.found or Path(output.root) / output.group / cell.id


def _decision(cell: Cell, run: Observed) -> _Decision:
    """Decide whether a recorded run shall be submitted; RecordError or ConfigError if it should be but cannot."""
    if run.is_taken:  # even with output.resume=never: nothing is started beside it
        return "under way"
    if cell.is_over:
        return "finished"
    if cell.state == State.NEW:
        return "to do"
    folder = Path(run.folder)
    if run.state == State.UNREADABLE:
        raise RecordError(str(run.why))
    check_unchanged(folder, cell.config)
    try:
        check_continuable(folder, cell.config)
    except ConfigError as error:
        raise ConfigError([*error.problems, *_remedy(cell, run)]) from error
    return "to do"


def _remedy(cell: Cell, run: Observed) -> list[str]:
    """Return how the run can be continued with the code with which it was submitted, if that is possible."""
    folder = Path(run.folder)
    if run.state not in (*REQUEUED, *STOPPED):  # ``requeue`` would submit nothing
        return []
    try:
        check_continuable(folder, cell.config, code=submitted_code(folder).name)
    except ConfigError:
        return []
    command = pasteable("dst.launcher.requeue", folder, *([] if run.state in REQUEUED else ["--preempted"]))
    return [f"to continue it with the code of its submission: {command}"]


def _frozen(cell: Cell, command: str) -> Run:
    return freeze(cell, command), cell.config


@contextmanager
def _left_alone(folder: Path, left: dict[Path, str]) -> Iterator[None]:
    """Leave a run alone if something is wrong with it, and note why, so that the others are not affected."""
    try:
        yield
    except ConfigError as error:
        left[folder] = "; ".join(error.problems)
    except (OSError, RecordError) as error:
        left[folder] = str(error)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # its files may hold anything
        left[folder] = f"its record makes no sense ({type(error).__name__}: {error})"


def submit_again(
    runs: Mapping[Path, Run], settings: LauncherSettings, states: Sequence[State], code: Path
) -> Submitted:
    """Submit runs in these states again as they were frozen, without the config files from which they were composed.

    ``runs``: by folder. ``code``: the frozen package with which they were submitted. Raises ConfigError if it was
    changed, SubmissionError if a job is not taken.
    """
    check_copy(code)
    left: dict[Path, str] = {}
    with _submitting({Path(config.output.root) for _, config in runs.values()}):
        todo: dict[Path, Callable[[], Run]] = {}
        others = superseded(runs)
        for (folder, run), now in zip(runs.items(), observe(runs), strict=True):
            with _left_alone(folder, left):
                if now.state in states and not now.is_taken and folder not in others:
                    check_continuable(folder, run[1], code=code.name)
                    todo[folder] = partial(freeze_again, *run)
        submitted, submission = _send(todo, settings, code, left)
    return Submitted(list(runs), list(submitted), submission, left)


def superseded(runs: Mapping[Path, Run]) -> dict[Path, Path]:
    """Return, by folder, the runs that have another attempt folder which is newer or under way."""
    ids = {folder: run_id(config) for folder, (_, config) in runs.items()}
    roots = {folder: config.output.root for folder, (_, config) in runs.items()}
    there = look(roots.values()).runs
    held = {root: ranked({run: its for run, its in there[root].items() if run in ids.values()}) for root in there}
    others: dict[Path, list[Path]] = {}
    better: dict[Path, set[Path]] = {}
    for folder, run in ids.items():
        its = {one.folder.resolve(): one for one in held[roots[folder]].get(run, [])}  # the one that counts first
        own = its.pop(folder.resolve(), None)
        lowest = own.rank if own else (attempt_of(folder, run) + 1,)  # a tree that was moved is judged by itself
        others[folder], better[folder] = [*its], {place for place, one in its.items() if one.rank > lowest}
    taken = {Path(run.folder) for run in observe(set().union(*others.values())) if run.is_taken}
    return {
        folder: other
        for folder, beside in others.items()
        for other in reversed(beside)  # so that of several the one that counts is named
        if other in better[folder] or other in taken
    }


@contextmanager
def _submitting(roots: Iterable[Path]) -> Iterator[None]:
    """Let one command at a time decide what to submit below these folders, and submit it."""
    with ExitStack() as stack:
        for root in sorted(root.resolve() for root in roots):
            try:
                (root / JOB_FILES).mkdir(parents=True, exist_ok=True)
                _wait_for_lock(stack, root / JOB_FILES)
            except OSError as error:
                raise ConfigError([f"output.root={root}: cannot write there: {error}"]) from error
        yield


def _wait_for_lock(stack: ExitStack, folder: Path) -> None:
    began, is_told = time.monotonic(), False
    while True:
        try:
            stack.enter_context(locked(folder))
            return
        except LockedError as error:
            if not is_told and time.monotonic() - began > _PATIENCE_S:
                print(f"waiting for another command that submits to {folder.parent}: {error.holder}", file=sys.stderr)
                is_told = True
            time.sleep(_LOCK_POLL_S)


def _send(
    work: Mapping[Path, Callable[[], Run]], settings: LauncherSettings, code: Path | None, left: dict[Path, str]
) -> tuple[dict[Path, Run], Submission | None]:
    """Freeze runs and submit them. If this fails at any point, record which runs were not submitted."""
    runs: dict[Path, Run] = {}
    try:
        for folder, frozen in work.items():
            with _left_alone(folder, left):
                runs[folder] = frozen()
        if not runs or code is None:
            return runs, None
        os.sync()
        ((_, config), *_) = runs.values()
        return runs, send(list(runs.values()), settings, root=Path(config.output.root), code=code)
    except BaseException as error:
        if left:
            print(_told(left), file=sys.stderr)
        of = len(work.keys() - left.keys())
        told = _record_unsubmitted([Path(run.folder) for run, _ in runs.values()], of, error)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(told) from None
        print(told, file=sys.stderr)
        raise


def _record_unsubmitted(frozen: Sequence[Path], of: int, error: BaseException) -> str:
    """Record and say which of the ``of`` runs of a command were not submitted, and why; ``frozen``: those frozen."""
    why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    without_job: list[Path] = []
    for folder in frozen:
        with _left_alone(folder, {}):
            state, job = (read_status(folder) or {}).get("state"), (read_launch(folder) or {}).get("job")
            if state == State.SUBMITTING or (state == State.QUEUED and job is None):
                without_job.append(folder)
                restate(folder, State.NOT_SUBMITTED, why, durable=False)
    others = [folder for folder in frozen if folder not in without_job]
    if len(others) == of:
        told = f"{why}; all {of} runs had been submitted{_as_jobs(others)}, and go on"
    else:
        go_on = f"; the other {len(others)} go on{_as_jobs(others)}" if others else ""
        told = f"{of - len(others)} of {of} runs were not submitted: {why}; the same command submits them{go_on}"
    remedy = error.remedy if isinstance(error, SubmissionError) else ""
    return "\n".join(filter(None, [told, remedy]))


def _as_jobs(folders: Sequence[Path]) -> str:
    """Return which jobs and arrays these runs have, as words for a message: `` as jobs 7, 8``."""
    jobs: list[str] = []
    for folder in folders:
        with _left_alone(folder, {}):
            jobs.append(str((read_launch(folder) or {})["job"]).partition("_")[0])
    return f" as {jobs_told(list(dict.fromkeys(jobs)))}" if jobs else ""


def jobs_told(jobs: Sequence[str]) -> str:
    """Return jobs as words for a message, at most some of them: ``job 7``, or ``jobs 7, 8 and 2 more``."""
    return f"job{'s' * (len(jobs) > 1)} {some(jobs)}"


def wait(folders: Sequence[Path]) -> list[Observed]:
    """Wait until no job carries out any of these runs any more; return them as they are then."""
    while True:
        began = time.monotonic()
        observed = observe(folders)
        if not any(run.is_taken for run in observed):
            return observed
        least = _SLURM_POLL_S if any(run.cluster == "slurm" for run in observed) else _POLL_S
        time.sleep(max(least, _REST * (time.monotonic() - began)))


def check_settings(settings: LauncherSettings, configs: Sequence[Config]) -> None:
    """Raise ConfigError if these runs cannot be submitted with these settings."""
    from dst.launcher import slurm

    problems = settings.problems()
    if settings.cluster == "slurm" and not slurm.available():
        problems.append("hydra/launcher=slurm: there is no sbatch on this machine; use hydra/launcher=local or basic")
    if settings.max_submitted is not None:
        problems += _check_max_submitted(settings, {kind_of_job(config.hardware) for config in configs})
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


def _check_max_submitted(settings: LauncherSettings, kinds: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with a limit to the number of jobs, if they are of these kinds."""
    told = f"hydra.launcher.max_submitted={settings.max_submitted}"
    if settings.cluster != "slurm":
        yield f"{told} would be ignored: on this machine all runs are one job; max_parallel says how many go on at once"
    elif settings.max_submitted and len(kinds) > settings.max_submitted:
        yield f"{told}: these cells ask for {len(kinds)} different kinds of jobs (hardware), so choose at least that"
