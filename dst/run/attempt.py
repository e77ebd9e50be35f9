"""One attempt at a run: find or make its record, build, train, finish, and report."""

import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst.config.compose import to_yaml
from dst.config.method import nominal_density
from dst.config.schema import Config, ConfigError
from dst.files import sha256
from dst.records.lock import this_host
from dst.records.read import read_attempts, read_networks, read_run, read_status
from dst.records.same import called
from dst.records.states import State
from dst.records.store import Record
from dst.run import compiled
from dst.run.advice import packing_advice
from dst.run.cell import Cell
from dst.run.environment import JOB
from dst.run.lost import check_resumable, lost_training
from dst.run.report import compute_table, exceptions_line, layer_table, outside_line, repair_table, run_report
from dst.run.resume import found_here, frozen, locked_record
from dst.run.sources import sources
from dst.run.terms import in_config_terms
from dst.signals import KilledError, StalledError, held, settle
from dst.tracking.pulse import starting

if TYPE_CHECKING:
    from dst.run.build import Parts
    from dst.sparsity.topology import LayerReport
    from dst.sparsity.weights.packing import Decision
    from dst.tracking.progress import Progress
    from dst.tracking.tracker import Tracker
    from dst.training.distributed import Processes
    from dst.training.phase import Network
    from dst.training.stopping import StopFlag

_HEARTBEAT_S = 10.0


def run(
    cell: Cell, command: str, stop: "StopFlag", *, with_tables: bool, processes: "Processes | None" = None
) -> State:
    """Begin or continue a run, train it to its end, and return the state in which it ended.

    Raises ConfigError, before anything is recorded, if it cannot be continued as it was begun. Of several ``processes``
    the main one calls this, and the others call ``follow``.
    """
    check_resumable(cell.id, cell.found, cell.config)
    starting("building the network and its first masks", cell.config.tracking.progress, at_once=False)
    parts = _built(cell.building, processes)
    sparsifier = parts.training.sparsifier
    repair = None if sparsifier.mended is None else sparsifier.mended.report()
    facts = found_here(parts.device_name, parts.dataset, sources(cell.config), sparsifier.outside, repair)
    record = cell.record(command)
    with locked_record(record, cell.config, cell.changed, facts):
        state = _Attempt(cell, record, parts, with_tables).carry_out(stop)
    if state in (State.DONE, State.PREEMPTED):
        compiled.keep()
    return state


def follow(config: Config, stop: "StopFlag", processes: "Processes") -> State:
    """Train together with the main process, which keeps the record; return the state in which the run ended.

    Raises DismissedError if the main process ends before training.
    """
    import torch

    from dst.training.guard import DivergedError
    from dst.training.observer import NoObserver
    from dst.training.stopping import StopRequestedError

    parts = _built(config, processes)
    checkpoint: Path | None = processes.hear()
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location=config.hardware.device, weights_only=True)
        parts.training.load_state_dict(state)
    try:
        parts.training.run(NoObserver(), stop)
        parts.training.finish(parts.test_batches)
    except (StopRequestedError, StalledError):
        return State.PREEMPTED
    except DivergedError:
        return State.DIVERGED
    return State.DONE


def _built(config: Config, processes: "Processes | None") -> "Parts":
    from dst.run.build import build
    from dst.training.distributed import ALONE

    try:
        return build(config, processes or ALONE)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


class _Attempt:
    """One attempt at a run. It observes the training loop, keeps the record, and records how the attempt ended."""

    def __init__(self, cell: Cell, record: Record, parts: "Parts", with_tables: bool) -> None:
        from dst.tracking.progress import progress
        from dst.tracking.tracker import NoTracker
        from dst.training.checkpoint import Checkpoints

        self.cell, self.record, self.parts = cell, record, parts
        self.called = called(record.folder, read_run(record.folder))
        self.training = parts.training
        self.with_tables = with_tables
        self.attempt = _attempts(record.folder) + 1
        self.checkpoints = Checkpoints(record.checkpoints, cell.config.checkpoint.keep, cell.id)
        self.progress: Progress = progress("none", self.training.total_steps, 0)
        self.tracker: Tracker = NoTracker()
        self.summary: dict[str, Any] = {}
        self.state = State.FAILED
        self._bottlenecks: set[str] = set()
        """Layers for which a warning was printed."""
        self._beat = 0.0
        self._begin_clock(0)

    def carry_out(self, stop: "StopFlag") -> State:
        """Train to the end and write the summary. Every way to end leaves a true status.

        The end is printed only after it is recorded.
        """
        try:
            told = self._train(stop)
            self.progress.close()
            with held():
                print(told, file=sys.stdout if self.state == State.DONE else sys.stderr, flush=True)
                if self.state == State.PREEMPTED:  # and it is said
                    settle(State.PREEMPTED.exit_code)
            return self.state
        finally:
            self.progress.close()
            self.tracker.finish()

    def _train(self, stop: "StopFlag") -> str:
        """Train, record how the attempt ended, and return the message about it."""
        from dst.training.captured import CaptureError
        from dst.training.checkpoint import CheckpointError
        from dst.training.guard import DivergedError
        from dst.training.stopping import StopRequestedError

        try:
            self._begin()
            self.training.run(self, stop)
            self._finish()
        except StopRequestedError as error:
            with held():  # saved: from here on, impatience loses nothing and says the same
                told = self._end(State.PREEMPTED, str(error))
                settle(State.PREEMPTED.exit_code, told)
            return told
        except StalledError as error:  # in the test, or among several processes, which cannot save in a step
            told = f"stopped by {stop.requested}, since {error}; the same command goes on from the last checkpoint"
            return self._end(State.PREEMPTED, told)
        except DivergedError as error:
            return self._end(State.DIVERGED, f"{error}; try a smaller schedule.lr.peak or a warm-up")
        except KeyboardInterrupt:
            if self.state != State.DONE:
                told = self._end(State.PREEMPTED, "interrupted twice: not saved since the last checkpoint")
                raise KeyboardInterrupt(told) from None
        except CaptureError as error:
            told = f"hardware.capture=always: what was asked for cannot be captured: {error}; use hardware.capture=auto"
            return self._end(State.FAILED, told)
        except (OSError, CheckpointError, KilledError) as error:  # such as a full disk: the message is enough
            return self._end(State.FAILED, f"{type(error).__name__}: {error}")
        except Exception as error:
            trace = traceback.format_exc()
            return trace + self._end(State.FAILED, f"{type(error).__name__}: {error}", trace)
        layers = [layer_table(self.training.sparsifier.layers)] if self.with_tables else []
        about = self.called, self.cell.name, self.record.folder, self.summary, {"attempt": self.attempt}
        advice = packing_advice(self.cell.config, self.training, self.summary)
        return "\n".join([*layers, run_report(*about), *([f"  {advice}"] if advice else [])])

    # -- what the training loop reports --------------------------------------------------------------------------------

    def on_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Log values, and show the most important ones."""
        self.record.log(step=step, epoch=epoch, attempt=self.attempt, values=values)
        self.tracker.poll()
        if "val/accuracy" in values or self.training.val_batches is None:
            sparsifier, phases = self.training.sparsifier, self.training.phases
            self.progress.advance(step)
            self.progress.show(
                {
                    **({"phase": self.training.phase.name} if len(phases) > 1 else {}),
                    "val accuracy": f"{values['val/accuracy']:.4f}" if "val/accuracy" in values else "-",
                    "density": f"{sparsifier.density:.4f}",
                    "Rs": f"{sparsifier.rs:.4f}",
                }
            )

    def on_layers(self, step: int, layers: "list[LayerReport]") -> None:
        """Log the counts of every layer."""
        self.record.log_layers(step=step, attempt=self.attempt, rows=[report.row for report in layers])
        for layer, warning in self.training.sparsifier.topology.bottlenecks().items():
            if layer not in self._bottlenecks:
                self._bottlenecks.add(layer)
                print(f"warning: {warning}", file=sys.stderr, flush=True)

    def on_compute(self, step: int, decisions: "Sequence[Decision]") -> None:
        """Log how layers are multiplied from now on, and print their times."""
        self.record.log_compute(step=step, attempt=self.attempt, rows=[decision.row for decision in decisions])
        print(compute_table(step, decisions), flush=True)

    def on_capture(self, step: int, line: str) -> None:
        """Print what was captured, or why nothing is."""
        print(f"  {line}", flush=True)

    def on_step(self, step: int) -> None:
        """Advance the progress display; every few seconds write a heartbeat."""
        self.progress.advance(step)
        if time.monotonic() - self._beat > min(_HEARTBEAT_S, max(1.0, self._elapsed_s)):  # more often at first
            self._status(State.RUNNING)

    def on_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint. The histories are synced first, so that no checkpoint is ahead of them."""
        self.record.sync()
        self.checkpoints.save(step, state, _phase(state))

    def on_network(self, network: "Network", state: Mapping[str, Any]) -> None:
        """Log a network, whose weights and masks are on the disk by then if they are to be kept."""
        from dst.training.checkpoint import save_network

        if any(row["name"] == network.name for row in read_networks(self.record.folder)):
            raise ValueError(f"a second network '{network.name}' of one run: give each a name of its own")
        if self.cell.config.output.keep_networks:
            save_network(self.record.networks / f"{network.name}.pt", state)
        self.record.log_network(attempt=self.attempt, **vars(network))

    # -- beginning and end ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Load the newest checkpoint if there is one, and announce the run."""
        from dst.tracking import tracker
        from dst.tracking.progress import progress

        training, config = self.training, self.cell.config
        process = {"host": this_host(), "pid": os.getpid(), "job": os.environ.get(JOB)}
        executed = sha256(to_yaml(frozen(config)))
        self.record.log_attempt(self.attempt, **self._started, **process, config_digest=executed)
        with in_config_terms("model", path="sparsity.init.path"):
            state = self.checkpoints.load_newest(config.hardware.device)
        lost = lost_training(self.record.folder) if state is None else None
        if state is not None:
            training.load_state_dict(state)
        step, total = training.counters.step, training.total_steps
        phase = 0 if state is None else _phase(state)
        path = None if state is None else self.checkpoints.path(step, phase).resolve()
        training.processes.tell(path, is_last=True)
        if self.attempt > 1 or self.record.has_history:
            self.record.mark_resume(step=step, attempt=self.attempt, phase=phase)
        self._begin_clock(step)
        self._status(State.RUNNING)
        self.record.log_attempt(self.attempt, **self._started, **({"restarted": lost} if lost else {}))
        starting(None)
        if lost:
            print(f"warning: run {self.called}: {lost}; it is trained from step 0 again", file=sys.stderr, flush=True)
        verb = f"continuing from step {step}" if step else "training"
        print(f"run {self.called}: {self.cell.name}; {verb}, {total} steps", flush=True)
        if step == 0:
            self.on_layers(0, training.sparsifier.layers)
        if self.parts.fused:
            print(f"fused {self.parts.fused}", flush=True)
        outside, is_frozen = training.sparsifier.outside, training.sparsifier.outside_is_frozen
        if outside and not self.with_tables:
            print(outside_line(outside, is_frozen=is_frozen), flush=True)
        if self.with_tables:
            print(layer_table(training.sparsifier.layers, outside, is_frozen=is_frozen), flush=True)
        if training.sparsifier.exceptions:
            print(exceptions_line(training.sparsifier.exceptions), flush=True)
        if training.sparsifier.weights.told:
            print(f"  {training.sparsifier.weights.told}", flush=True)
        if step == 0 and training.sparsifier.mended is not None:
            print(repair_table(training.sparsifier.mended.report(), whole=self.with_tables), flush=True)
        self.progress = progress(config.tracking.progress, total, step)
        self.tracker = tracker(config.tracking.mode, config.tracking.timeout_s)
        self.tracker.begin(self.record.folder)

    def _finish(self) -> None:
        """Test once, write the summary, and only then record the run as done."""
        summary: dict[str, Any] = dict(self.training.finish(self.parts.test_batches))
        summary["flops/train_ratio"] = summary["flops/train"] / self.parts.dense_training_flops
        if (asked := nominal_density(self.cell.config)) is not None:
            summary["sparsity/nominal_density"] = asked
        self.record.write_summary(summary)
        self.summary = summary
        self.record.close()
        self._over(State.DONE)

    def _end(self, state: State, error: str, trace: str | None = None) -> str:
        """Record that the attempt stopped before the run was done, and return the message about it."""
        told = f"run {self.called} {state}: {error}"
        try:
            self._over(state, error, trace)
        except OSError as problem:  # such as a full disk
            self.state = state
            told += f"\nand its status could not be written: {problem}"
        return told

    def _over(self, state: State, error: str | None = None, trace: str | None = None) -> None:
        """Record the end of this attempt: first its status, which counts, then a line in ``attempts.jsonl``."""
        self._status(state, error, trace)
        try:
            replayed = self.training.replays.steps
            self.record.log_attempt(
                self.attempt,
                ended=time.time(),
                step=self.training.counters.step,
                state=state,
                error=error,
                **({"replayed_steps": replayed} if replayed else {}),
            )
        except OSError as problem:
            print(f"warning: the end of attempt {self.attempt} is not in attempts.jsonl: {problem}", file=sys.stderr)

    def _status(self, state: State, error: str | None = None, trace: str | None = None) -> None:
        self._beat = time.monotonic()
        self.record.write_status(
            state,
            attempt=self.attempt,
            step=self.training.counters.step,
            total_steps=self.training.total_steps,
            error=error,
            traceback=trace,
            job=os.environ.get(JOB),
            **self._started,
            elapsed_s=self._elapsed_s,
        )
        self.state = state

    def _begin_clock(self, step: int) -> None:
        """Say that what is trained now begins at a step, now: a date for people, and a clock that nobody sets."""
        self._started, self._clock = {"started": time.time(), "started_step": step}, time.monotonic()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._clock


def _phase(state: Mapping[str, Any]) -> int:
    """Return the phase of a saved state; one that was saved before there were phases is of the first."""
    return int(state["counters"].get("phase", 0))


def _attempts(folder: Path) -> int:
    """Return the number of attempts at a run so far."""
    told: list[int] = [
        attempt["attempt"] for attempt in [read_status(folder) or {"attempt": 0}, *read_attempts(folder)]
    ]
    return max(told)
