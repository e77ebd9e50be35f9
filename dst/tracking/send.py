"""The program that sends a run's record to wandb's server: ``python -m dst.tracking.send FOLDER``.

It sends what is recorded and then what is added, until its standard input is closed or the process that started it is
gone. Then it sends the rest, and how the run ended. It asks the server what it has under the run's id and sends what is
lacking, so sending again duplicates nothing, even after a failure half-way. Each problem is a line on standard output;
the exit code is 0 if everything has arrived. But for ``fetch``, no other module imports wandb.
"""

import argparse
import os
import select
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from dst.files import size, space
from dst.records.lock import LockedError, locked
from dst.records.read import read_summary
from dst.records.states import State
from dst.tracking import described, mirrored
from dst.tracking.mirrored import NotSentError
from dst.tracking.tables import TABLES

_WANDB_CODES: Final = {State.DONE: 0, State.KILLED: 254}
"""Exit codes that wandb shows as finished and as crashed; any other one is failed."""

_NOT_PLOTTED: Final = ("step", "epoch", "attempt", "time/seconds")
"""What others are plotted over, at most."""

_LEAST_B: Final = 1 << 20
"""Free bytes below which wandb's own process is taken to have failed by that."""

_POLL_S: Final = 1.0
_RETRY_S: Final = 60.0

_GRACE_S: Final = 5.0

Report = Callable[[str], None]


def main() -> None:
    """Send one run. Exit without waiting for exit hooks and threads of wandb, which may hang."""
    code, options = 1, _parser().parse_args()
    reports, over = os.fdopen(os.dup(1), "w", encoding="utf-8"), threading.Event()
    devnull = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    threading.Thread(target=_watch, args=(over, options.timeout_s), daemon=True).start()

    told = set[str]()

    def report(text: str) -> None:
        if text not in told:
            told.add(text)
            with suppress(OSError):  # no process reads it any more
                print(text, file=reports, flush=True)

    try:
        _Sender(options, over, report).send()
        code = 0
    except Exception as error:
        report(_first_line(error) + _no_room(Path(os.environ["TMPDIR"])))
    finally:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
        os._exit(code)


def _watch(over: threading.Event, timeout_s: float) -> None:
    """Set ``over`` when the run is over; then end this process after its time, in case its parent cannot do so."""
    parent = os.getppid()
    while os.getppid() == parent and not select.select([0], [], [], _POLL_S)[0]:
        pass
    over.set()
    time.sleep(timeout_s + _GRACE_S)
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os._exit(1)


class _Sender:
    """Sends the record of one run. ``over`` is set when the run is over and the record is complete."""

    def __init__(self, options: argparse.Namespace, over: threading.Event, report: Report) -> None:
        self.folder: Path = options.folder.resolve()
        self.project, self.entity = described.destination(self.folder, options.project, options.entity)
        self._share: float = options.timeout_s / 2  # of its time: one half for the beginning, one for the end
        self.over, self.report = over, report

    def send(self) -> None:
        """Send everything. While the run goes on, retry what fails; try once more when it is over."""
        with ExitStack() as stack:
            self._take_turn(stack)
            is_last = False
            while True:
                begun, run = time.monotonic(), None
                try:
                    run = self._start()
                    return self._mirror(run)
                except (NotSentError, TimeoutError):
                    raise
                except Exception as error:  # SIGTERM to a whole SLURM step ends wandb's own process, for instance
                    _tear_down()
                    has_had_its_time = self.over.is_set() and time.monotonic() - begun >= self._share
                    if is_last or has_had_its_time:
                        raise
                    if run is None:
                        self.report(_first_line(error))
                    is_last = self.over.wait(_RETRY_S)

    def _take_turn(self, stack: ExitStack) -> None:
        """Lock the mirror of this run. A sender of an earlier attempt may still be at work: wait for it."""
        place, may_wait = self.folder / mirrored.PLACE, not self.over.is_set()
        place.mkdir(exist_ok=True)
        while True:
            try:
                stack.enter_context(locked(place))
                return
            except LockedError as error:
                if not may_wait:
                    raise NotSentError(f"it is being sent already ({error.holder})") from error
                time.sleep(_POLL_S)

    def _start(self) -> Any:
        import wandb

        run = wandb.init(
            mode="online",
            dir=os.environ["TMPDIR"],
            resume="allow",
            project=self.project,
            entity=self.entity,
            settings=_settings(self._share, described.began(self.folder)),
            **described.description(self.folder),
        )
        run.define_metric("*", step_metric="step")
        for name in _NOT_PLOTTED:
            run.define_metric(name, hidden=True)
        return run

    def _mirror(self, run: Any) -> None:
        """Send the history until it ends, then the rest; ``NotSentError`` if lines of it have not arrived."""
        path, start = f"{run.entity}/{run.project}/{run.id}", described.began(self.folder)
        lines = _lines(path, self._share) if run.resumed else 0
        history = mirrored.History(self.folder, run.starting_step, mirrored.read_book(self.folder).get("last") or {})
        is_over, seconds = False, 0.0
        while not is_over:
            is_over = self.over.wait(_POLL_S)
            if is_over:  # noted before reading: what is added while sending counts as not sent
                arrived = mirrored.contents(self.folder, self.project, self.entity)
            for step, row in history.new(is_over=is_over):
                # wandb shall show the time of the run, as far as it is recorded, not the time of sending.
                told = row.get("time/seconds")
                seconds = told if isinstance(told, int | float) else seconds
                run.log({**mirrored.with_nan(row), "_timestamp": start + seconds}, step=step, commit=True)
                lines += 1
        self._finish(run)
        _confirm(path, lines, self._share)
        mirrored.write_book(self.folder, arrived, history.last)
        _tear_down()

    def _finish(self, run: Any) -> None:
        """Send the tables and the final figures, and wait until they have arrived."""
        import wandb

        end = mirrored.state(self.folder)
        run.summary.update(mirrored.with_nan(mirrored.best(self.folder) | (read_summary(self.folder) or {})))
        for name, make in TABLES.items():
            try:
                columns, rows = make(self.folder)
                if rows:
                    run.summary.update({name: wandb.Table(columns=columns, data=rows)})
            except (KeyError, TypeError, ValueError) as error:  # the rest is sent all the same
                self.report(f"no table {name}: {_first_line(error)}")
        if end == State.PREEMPTED:
            run.mark_preempting()
        run.finish(exit_code=_WANDB_CODES.get(end, 1))


def _settings(share: float, began_at: float) -> Any:
    """Return wandb's settings: silent, waiting at most ``share`` seconds, recording only what it is given."""
    import wandb

    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "symlink": False,
        "stop_on_fatal_error": False,
        "stop_fn": _ignore_stop,
        "x_start_time": began_at,
        "init_timeout": share,
        "finish_timeout": share,
        "finish_timeout_raises": True,
        "login_timeout": share,
        "x_service_wait": share,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    known = wandb.Settings.model_fields  # older versions lack some
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _ignore_stop() -> None:
    """Ignore the Stop button of wandb: it would stop this process and not the run."""


def _lines(path: str, timeout_s: float) -> int:
    """Return how many lines of history the server has."""
    import wandb

    return int(wandb.Api(timeout=max(1, int(timeout_s))).run(path).historyLineCount or 0)


def _confirm(path: str, lines: int, timeout_s: float) -> None:
    """Wait until the server has this many lines of history.

    wandb counts a run as finished, and exits with 0, even if the server has refused all of its history.
    """
    deadline = time.monotonic() + timeout_s
    while (found := _lines(path, timeout_s)) < lines:
        if time.monotonic() > deadline:
            raise NotSentError(f"the server has {found} of {lines} lines of the history")
        time.sleep(_POLL_S / 2)


def _tear_down() -> None:
    """End wandb's own process."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def _no_room(scratch: Path) -> str:
    """Return that wandb may have failed for want of space, which it does not say itself; empty if there is some."""
    free = space(scratch)
    return f"; there is no space left for wandb's scratch {scratch}: {size(free)} are free" if free < _LEAST_B else ""


def _first_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "wandb":
        return "not installed: pip install wandb"
    if isinstance(error, KeyError):
        return f"the record lacks {error}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dst.tracking.send")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--project")
    parser.add_argument("--entity")
    parser.add_argument("--timeout-s", type=float, required=True)
    return parser


if __name__ == "__main__":
    main()
