"""A job: a process that SLURM (or this machine) starts, and that starts its runs, each in a process of its own.

The job itself loads neither torch nor a config. It passes requests to stop on to its runs, which save and end. Only
then does it ask SLURM to put it back into the queue. Signal handlers only note the request.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment

from dst.launcher import slurm
from dst.launcher.neighbours import fault_in, printed
from dst.launcher.sharing import Decision, Sharing
from dst.records.lock import holder
from dst.records.read import read_launch, read_status
from dst.records.restate import restate
from dst.records.states import ENDED, State, worst
from dst.records.store import Record, RecordError
from dst.run.environment import JOB
from dst.run.terminal import secure
from dst.signals import REQUESTS, stop_with

_POLL_S: Final = 0.2
_STOPPED: Final = State.PREEMPTED.exit_code
_LOG_LINES: Final = 200
_TIME_LIMIT: Final = "time limit"
_PREEMPTION: Final = "preemption"
_EARLY_S: Final = 90.0
"""SLURM announces a time limit up to a minute earlier than requested."""
_UNBEGUN_S: Final = 60.0
"""How long a run may take to begin after a request to stop."""
_MAIN_WAIT_S: Final = 120.0
"""How long the other tasks of a job wait for the first one, which records the end and has the job requeued."""


@dataclass(frozen=True)
class FrozenRun:
    """A run folder, the run's readable name, and the digest and the text of the config to execute in it."""

    folder: str
    name: str
    digest: str
    config: str


@dataclass
class Job:
    """What a job does: carry out ``runs``, at most ``parallel`` at once, each on ``processes`` tasks of the job.

    Once it is being stopped, ``runs`` are those that shall continue after the job is requeued.

    submitit calls it on the node. ``requeues``: how often it has put itself back into the queue; ``code``: the worst
    exit code of the runs that ended before that. ``signal_delay_s``: how long before its time limit it gets a signal.
    ``gpus``: the GPUs for its runs, as CUDA_VISIBLE_DEVICES names them, if the cluster does not assign any.
    ``cuda``: its runs use them.
    """

    runs: tuple[FrozenRun, ...]
    parallel: int = 1
    processes: int = 1
    max_requeues: int = 0
    signal_delay_s: int = 0
    requeues: int = 0
    code: int = 0
    gpus: tuple[str, ...] = ()
    cuda: bool = False

    def __call__(self) -> None:
        """Carry out the runs; exit with the worst of their exit codes unless it is 0."""
        secure()
        supervisor = _Supervisor(self)
        _remove_half_written(supervisor.environment.paths.submitted_pickle)
        code = supervisor.carry_out()
        if code:
            sys.exit(code)

    @property
    def title(self) -> str:
        """The job's name in the queue: that of its run, or of its first run and how many more there are."""
        more = f" + {len(self.runs) - 1}" if len(self.runs) > 1 else ""
        return f"{self.runs[0].name}{more}".replace(" ", ",")

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit shall start after the job is requeued."""
        return DelayedSubmission(replace(self, requeues=self.requeues + 1))


@dataclass
class _Child:
    """A run that is being carried out."""

    run: FrozenRun
    process: "subprocess.Popen[bytes]"
    log: Path
    gpus: tuple[str, ...]
    is_client: bool = False
    """It shares its GPU under MPS, where a fault of another can end it."""
    begun_at: int = 0
    """How many bytes its log had when it began."""


@dataclass
class _Supervisor:
    job: Job
    requested: int | None = None
    """The signal that requested a stop."""
    waiting: list[FrozenRun] = field(init=False)
    running: list[_Child] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    sharing: Sharing | None = None
    held: dict[str, _Child] = field(default_factory=dict)
    """Runs, by their folder, that have ended by a fault under MPS: what becomes of them is not decided yet."""

    def __post_init__(self) -> None:
        self.waiting = list(self.job.runs)
        self.environment = JobEnvironment()
        self.is_main = self.environment.global_rank == 0

    def carry_out(self) -> int:
        """Start, watch and stop the runs; return the worst exit code. It does not return if the job is requeued."""
        if self.environment.cluster == "local":
            os.setpgrp()  # signals of the submitting terminal are not meant for it
        if self.environment.cluster == "slurm" and self.is_main:
            slurm.rename(self.environment.job_id, self.job.title)
        requeue = signal.getsignal(signal.SIGUSR2)
        for number in set(REQUESTS) - {signal.SIGHUP}:  # the end of the terminal from which it was submitted
            signal.signal(number, self._request)
        if self.environment.cluster == "local":  # nobody could stop it any more, and its runs would be submitted again
            stop_with(self._controller)
        self.sharing = self._share()
        try:
            self._carry_out_runs()
        finally:
            if self.sharing is not None:
                self.sharing.stop()
        unfinished = [run for run in self.job.runs if self.codes.get(run.folder, _STOPPED) == _STOPPED]
        if unfinished and self.requested is not None:
            self._stopped(unfinished, requeue)
        code = worst([self.job.code, *self.codes.values()]) or (_STOPPED if unfinished else 0)
        if code and not self.is_main and self.environment.cluster == "slurm":
            time.sleep(_MAIN_WAIT_S)  # srun kills all tasks as soon as one of them fails
        return code

    def _share(self) -> Sharing | None:
        """Return how runs share GPUs; None if each has one for itself, or more."""
        at_once = min(self.job.parallel, len(self.job.runs))
        if not self.job.cuda or self.job.processes > 1 or at_once == 1:
            return None
        gpus = self.job.gpus or visible_gpus()
        return Sharing(gpus, at_once, lambda told: _say(f"{_now()} {told}")) if 0 < len(gpus) < at_once else None

    def _carry_out_runs(self) -> None:
        forwarded, asked = None, 0.0
        while self.running or self.held or (self.waiting and self.requested is None):
            while self.waiting and self._may_start:
                self._start_or_tell(self.waiting.pop(0))
            if self.requested != forwarded and self.requested is not None:
                forwarded = self.requested
                for child in self.running:  # SLURM may have signalled it too, and a second SIGINT would kill it
                    child.process.send_signal(signal.SIGTERM if forwarded == signal.SIGINT else forwarded)
                asked = time.monotonic()
            if forwarded is not None and time.monotonic() - asked > _UNBEGUN_S:
                self._end_unbegun()
            self._reap()
            self._decide()
            time.sleep(_POLL_S)

    @property
    def _may_start(self) -> bool:
        is_settling = self.sharing is not None and self.sharing.is_settling
        return len(self.running) < self.job.parallel and self.requested is None and not is_settling

    @property
    def _controller(self) -> int:
        """The process by which a job of this machine is known, and that starts its tasks."""
        return int(self.environment.job_id)

    def _end_unbegun(self) -> None:
        """Kill runs that have not begun some time after the request to stop; nothing is lost.

        For example one process of a run that waits for others, which were never started.
        """
        for child in self.running:
            with _apart(child.run):
                if holder(Path(child.run.folder)) is None:
                    child.process.kill()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested != signal.SIGUSR2:  # SIGTERM follows at the time limit and is the same request
            self.requested = number

    def _start_or_tell(self, run: FrozenRun) -> None:
        """Start a run. If that fails, because its folder is gone for example, the run has failed; the others go on.

        A run that was given to another job since is left to that one.
        """
        if (other := _job_of(run)) not in (None, self.environment.job_id):
            self.codes[run.folder] = State.REFUSED.exit_code
            _say(f"{_now()} {Path(run.folder).name}: not started, since it was submitted again as job {other}")
            return
        try:
            self._start(run)
        except Exception as error:
            self.codes[run.folder] = State.FAILED.exit_code
            told = f"it could not be started: {type(error).__name__}: {error}"
            _say(f"{_now()} {Path(run.folder).name}: {told}", sys.stderr)
            if self.is_main:
                _fail(run, told)

    def _start(self, run: FrozenRun) -> None:
        rank = self.environment.global_rank
        log = Path(run.folder) / ("log.txt" if rank == 0 else f"log.{rank}.txt")
        environment, gpus = {**os.environ, JOB: self.environment.job_id}, self._gpus()
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        as_client = {} if self.sharing is None else self.sharing.environment(run.folder, gpus)
        if self.job.processes > 1:
            environment |= _torch_distributed()
        alone = ["--parent", str(os.getpid())] if self.environment.cluster == "local" else []  # SLURM ends what is left
        with log.open("ab") as output:
            begun_at = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "dst.launcher.node", run.folder, "--digest", run.digest, *alone],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | as_client,
            )
        self.running.append(_Child(run, process, log, gpus, bool(as_client), begun_at))
        _say(f"{_now()} {Path(run.folder).name} started as process {process.pid}, output in {log}")

    def _gpus(self) -> tuple[str, ...]:
        """Return the GPUs of the next run: all of the job's, or the least used one if several runs go on at once."""
        gpus = self.job.gpus or visible_gpus()
        if gpus and self.job.processes == 1 and self.job.parallel > 1:
            used = [child.gpus for child in self.running]
            gpus = (min(gpus, key=lambda gpu: used.count((gpu,))),)
        return gpus

    def _reap(self) -> None:
        for child in list(self.running):
            code = child.process.poll()
            if code is not None:
                self.running.remove(child)
                if self._is_held(child, code):
                    self.held[child.run.folder] = child
                else:
                    self._judge(child, code)

    def _judge(self, child: _Child, code: int) -> None:
        self.codes[child.run.folder] = State.FAILED.exit_code
        with _apart(child.run):
            self.codes[child.run.folder] = self._judged(child, code)

    def _is_held(self, child: _Child, code: int) -> bool:
        """Say whether a run has ended by a fault that may be that of another; then it is decided later."""
        if self.sharing is None or not child.is_client:
            return False
        went_well = code in (0, _STOPPED, State.DIVERGED.exit_code)
        fault = None if went_well else fault_in(printed(child.log, child.begun_at))
        return self.sharing.note_end(child.run.folder, child.gpus, code, fault)

    def _decide(self) -> None:
        """Let runs that were stopped by the fault of another go on; a run that has caused one has failed."""
        if self.sharing is None:
            return
        for decision in self.sharing.decisions([child.gpus for child in self.running if child.is_client]):
            child = self.held.pop(decision.ended.folder)
            if decision.cause is None:
                self._judge(child, decision.ended.code)
            else:
                self._continue(child.run, decision)

    def _continue(self, run: FrozenRun, decision: Decision) -> None:
        _say(f"{_now()} {Path(run.folder).name} was {decision.cause}; {decision.then}")
        self.codes[run.folder] = _STOPPED
        self.waiting.insert(0, run)
        if self.is_main and decision.cause is not None:
            _note_stopped(run, decision.cause, decision.then)

    def _judged(self, child: _Child, code: int) -> int:
        """Return the exit code of a run that has ended, and record what it could not record itself."""
        name, state = Path(child.run.folder).name, _state(child.run)
        if code < 0 and self.requested is not None:  # its handler was not yet installed, or already removed
            code = state.exit_code if state in ENDED else _STOPPED
        _say(f"{_now()} {name} ended with exit code {code}")
        if code == _STOPPED and self.requested is None and self.environment.cluster == "local" and self.is_main:
            _leave(child.run, self.environment.job_id)
        if code in (0, _STOPPED):
            return code
        _say(_tail(child.log), sys.stderr)
        if code == State.REFUSED.exit_code and state not in (State.QUEUED, None):  # it has recorded the reason itself
            return code
        if code > 0 and self.is_main and state not in ENDED:
            when = " before it began" if state == State.QUEUED else ""
            _fail(child.run, f"it ended with exit code {code}{when}; see {child.log}")
        if code < 0 and state in ENDED:  # killed while it left; its end is on record, and true
            return state.exit_code
        if code < 0:
            signal_name = _signal_name(-code)
            hint = " (was its memory too small?)" if -code == signal.SIGKILL else ""
            if self.is_main:
                error = f"killed by {signal_name}{hint}; see {child.log}"
                if _fail(child.run, error):
                    _note_end(child.run, state=State.FAILED, error=error)
            code = State.FAILED.exit_code
        return code

    def _stopped(self, unfinished: list[FrozenRun], requeue: Any) -> None:
        """Record the cause and, if SLURM wants the node back, have the job requeued."""
        if self.requested != signal.SIGUSR2:  # SIGKILL may follow before SLURM answers, so record first what is known
            self._tell_stopped(unfinished, self._cause(None), "stopped")
        is_slurm = self.environment.cluster == "slurm"
        notice = slurm.notice(self.environment.job_id) if is_slurm else None
        cause = self._cause(notice)
        # SIGTERM announces preemption, too, if SLURM does not send the job's own signal (preempt_send_user_signal).
        is_ours = callable(requeue) and (self.requested == signal.SIGUSR2 or cause == _PREEMPTION)
        requeues = max(self.job.requeues, int(os.environ.get("SLURM_RESTART_COUNT", "0")))  # users requeue it, too
        may_requeue = is_ours and requeues < self.job.max_requeues
        then = "stopped" if not is_ours else f"to be requeued as job {self.environment.job_id}"
        if is_ours and not may_requeue:
            then = f"not requeued: it was {requeues} times (hardware.slurm.max_requeues)"
        if is_ours or self.requested == signal.SIGUSR2:  # otherwise it is recorded already
            self._tell_stopped(unfinished, cause, then)
        if may_requeue:
            self.job.code = worst([self.job.code, *(code for code in self.codes.values() if code != _STOPPED)])
            self.job.runs = tuple(unfinished)
            try:
                requeue(signal.SIGUSR2, None)  # submitit's: it ends the first task and returns in the others
            except Exception as error:  # whatever it is: the saved runs can be continued
                told = " ".join(str(error).split())
                self._tell_stopped(unfinished, cause, f"it could not be requeued: {told}; submit it again")
                return
            time.sleep(_MAIN_WAIT_S)

    def _tell_stopped(self, unfinished: list[FrozenRun], cause: str, then: str) -> None:
        _say(f"{_now()} {cause}: {then}")
        if self.is_main:
            for run in unfinished:
                if run.folder in self.codes:
                    _note_cause(run, cause, then)

    def _cause(self, notice: slurm.Notice | None) -> str:
        assert self.requested is not None
        if self.environment.cluster == "local" and os.getppid() != self._controller:
            return f"its job's process {self._controller} is gone"
        if notice is not None and notice.is_preemption:
            return _PREEMPTION
        if self.requested == signal.SIGUSR2:  # SLURM announces both by it
            if notice is None:
                return f"{_TIME_LIMIT} or {_PREEMPTION}"
            if notice.left_s <= self.job.signal_delay_s + _EARLY_S:
                return _TIME_LIMIT
        return f"stop request ({_signal_name(self.requested)})"


def _remove_half_written(pickle: Path) -> None:
    """Remove the file that stays if a job is killed while submitit rewrites its pickle; it would prevent a requeue."""
    with suppress(OSError):
        pickle.with_suffix(f"{pickle.suffix}.save_tmp").unlink(missing_ok=True)


def _torch_distributed() -> dict[str, str]:
    """Return the environment variables by which torch's processes find each other."""
    found = TorchDistributedEnvironment()
    values = {
        "MASTER_ADDR": found.master_addr,
        "MASTER_PORT": found.master_port,
        "RANK": found.rank,
        "WORLD_SIZE": found.world_size,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.local_world_size,
    }
    return {name: str(value) for name, value in values.items()}


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name)
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], check=False, capture_output=True, text=True)
    return tuple(str(number) for number in range(len(listed.stdout.splitlines())))


def _job_of(run: FrozenRun) -> str | None:
    """Return the job to which a run was given last; None if that is on no record, or is just being changed."""
    with suppress(OSError, RecordError):
        return (read_launch(Path(run.folder)) or {}).get("job")
    return None


def _state(run: FrozenRun) -> State | None:
    """Return the recorded state of a run; None if there is none, or it cannot be read."""
    with suppress(OSError, RecordError):
        return (read_status(Path(run.folder)) or {}).get("state")
    return None


@contextmanager
def _apart(run: FrozenRun) -> Iterator[None]:
    """Print what goes wrong with the record of one run, so that it does not affect its neighbours."""
    try:
        yield
    except Exception as problem:
        _say(f"the record of {run.folder} could not be kept: {type(problem).__name__}: {problem}", sys.stderr)


def _note_cause(run: FrozenRun, cause: str, then: str) -> None:
    """Record why a run was stopped; the run itself has recorded where it stands."""
    with _apart(run):
        status = read_status(Path(run.folder)) or {}
        if status.get("state") == State.QUEUED:  # it was stopped before it began
            return
        if status.get("state") == State.PREEMPTED:
            told = f"{cause} after step {status.get('step', 0)}; {then}"
            restate(Path(run.folder), State.PREEMPTED, told, keep_attempt=True)
        _note_end(run, cause=cause)


def _note_stopped(run: FrozenRun, cause: str, then: str) -> None:
    """Record that a run was stopped by what it has not caused, though it has recorded itself that it has failed."""
    with _apart(run):
        status = read_status(Path(run.folder)) or {}
        state = State.PREEMPTED if status.get("attempt") else State.QUEUED
        told = f"{cause} after step {status.get('step', 0)}; {then}"
        if restate(Path(run.folder), state, told, keep_attempt=True) and "started" in status:  # by this attempt
            _note_end(run, state=state, cause=cause)


def _note_end(run: FrozenRun, **facts: str) -> None:
    """Add facts about a run's newest attempt."""
    with _apart(run):
        attempt = (read_status(Path(run.folder)) or {}).get("attempt", 0)
        if attempt:
            Record.open(Path(run.folder)).log_attempt(attempt, **facts)


def _leave(run: FrozenRun, job: str) -> None:
    """Record that a run that was stopped by itself has left its job, which goes on with others: it may have another."""
    launch = read_launch(Path(run.folder)) or {}
    if launch.get("job") == job:
        Record.open(Path(run.folder), durable=False).write_launch({**launch, "job": None})


def _fail(run: FrozenRun, error: str) -> bool:
    """Record that a run has failed, unless another process carries it out; return whether it was recorded."""
    with _apart(run):
        return restate(Path(run.folder), State.FAILED, error, keep_attempt=True)
    return False


def _say(text: str, stream: TextIO | None = None) -> None:
    """Print to the job's log; a full disk must not end the job."""
    with suppress(OSError, ValueError):
        print(text, file=stream or sys.stdout, flush=True)


def _signal_name(number: int) -> str:
    """Return the name of a signal, or its number if it has no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"--- {path} cannot be read: {error}"
    return "\n".join([f"--- the end of {path}:", *lines[-_LOG_LINES:], "---"])


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
