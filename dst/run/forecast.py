"""What a run will cost: FLOPs exactly, memory and time from a few timed steps. Nothing is recorded.

Memory and time are not known on a machine without the run's device, such as a cluster's login node.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from dst.config.schema import Config, Hardware
from dst.data.loader import samples_of
from dst.data.shard import Shard
from dst.files import size
from dst.metrics.flops import Ledger
from dst.run.build import Parts, build
from dst.run.cell import Cell
from dst.run.report import duration, table
from dst.sparsity import Sparsifier
from dst.training.correction import Correction
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.phase import Phase
from dst.training.planned import planned_steps

_WARM_UP = 2
_AT_LEAST = 5
_TIMED_S = 2.0
_UNKNOWN = "-"
_HEADER = (
    *("run", "parameters", "active", "steps", "FLOPs/step", "FLOPs", "x dense"),
    *("checkpoint", "memory", "step", "time"),
)


@dataclass(frozen=True)
class Forecast:
    """The cost of one run. Times in seconds, sizes in bytes; FLOPs of the whole training, and of its average step.

    ``measured``: peak memory, seconds of a step, and seconds of all; None on a machine without the run's device.
    """

    name: str
    steps: int
    parameters: int
    maskable: int
    active: int
    step_flops: int
    train_flops: int
    dense_flops: int
    checkpoint_bytes: int
    measured: tuple[int, float, float] | None


def forecasts(cells: Sequence[Cell]) -> list[Forecast]:
    """Return the forecast of each run; those that differ in the seed only are timed once."""
    known: dict[str, Forecast] = {}
    found = []
    for cell in cells:
        key = repr({**cell.identity, "seed": 0})
        if key not in known:
            known[key] = _forecast(cell.config)
        found.append(replace(known[key], name=cell.name))
    return found


def text(found: Sequence[Forecast]) -> str:
    """Return the forecasts as a table; for several runs with the sums of FLOPs and time."""
    rows = [_row(forecast) for forecast in found]
    if len(found) > 1:
        flops, steps = sum(f.train_flops for f in found), sum(f.steps for f in found)
        times = [f.measured[2] for f in found if f.measured is not None]
        seconds = _time(sum(times)) if len(times) == len(found) else _UNKNOWN
        blank = [""] * 4
        rows.append([f"sum of {len(found)}", "", "", f"{steps:,}", "", f"{flops:.3e}", *blank, seconds])
    notes = []
    if any(f.measured is not None for f in found):
        notes.append(
            "time: one run after another on this machine, judged by a few steps and evaluations (if a run has several "
            "processes: one of them with its share of the batch, without communication); memory: peak so far"
        )
    if any(f.measured is None for f in found):
        notes.append(
            f"{_UNKNOWN}: not known here, since PyTorch finds no CUDA GPU on this machine (hardware.device=cuda); ask "
            "for the forecast on a machine that has one"
        )
    return "\n  ".join([table(_HEADER, rows), *notes])


def _row(f: Forecast) -> list[str]:
    return [
        f.name,
        f"{f.parameters:,}",
        f"{f.active:,}",
        f"{f.steps:,}",
        f"{f.step_flops:.3e}",
        f"{f.train_flops:.3e}",
        f"{f.train_flops / f.dense_flops:.3f}",
        size(f.checkpoint_bytes),
        *_measured(f),
    ]


def _measured(f: Forecast) -> list[str]:
    if f.measured is None:
        return [_UNKNOWN] * 3
    memory_bytes, step_s, total_s = f.measured
    return [size(memory_bytes), f"{1e3 * step_s:.1f} ms", _time(total_s)]


def _forecast(config: Config) -> Forecast:
    is_here = config.hardware.device == "cpu" or torch.cuda.is_available()
    # Counts are the same on any device.
    parts = build(config if is_here else replace(config, hardware=Hardware(threads=config.hardware.threads)))
    training = parts.training
    ledger = planned_ledger(training)
    train_flops = ledger.total
    return Forecast(
        name="",
        steps=training.total_steps,
        parameters=training.parameters,
        maskable=training.sparsifier.topology.size,
        active=training.sparsifier.topology.active,
        step_flops=train_flops // training.total_steps,
        train_flops=train_flops,
        dense_flops=parts.dense_training_flops,
        checkpoint_bytes=_bytes(training.state_dict()),
        measured=_measure(parts, Shard(0, config.hardware.processes), ledger) if is_here else None,
    )


def _measure(parts: Parts, shard: Shard, ledger: Ledger) -> tuple[int, float, float]:
    """Return the peak memory, the seconds of a step and those of the whole training.

    Passes beside those of steps are taken to cost as much time for each of their FLOPs.
    """
    training = parts.training
    step_s, evaluation_s = _time_step(parts, shard), _time_evaluation(parts, shard)
    steps_s = training.total_steps * step_s * ledger.total / ledger.training.total
    return _peak_memory(), step_s, steps_s + _evaluations(training) * evaluation_s


def _evaluations(training: Training) -> int:
    """Return how many evaluations a whole training has: the validations, and the test at the end."""
    if training.val_batches is None:
        return 1
    interval = len(training.train_batches) * training.settings.eval_every_epochs
    made = sum(phase.end is not None for phase in training.phases)  # networks that are validated too
    return -(-training.total_steps // interval) + made + 1


def planned_ledger(training: Training) -> Ledger:
    """Return the FLOPs of the whole training as the loop will book them; ``training``: one that has not begun.

    How exact they are: see ``planned_steps``. What a phase does between steps is booked as if the networks that it
    makes had the layers' numbers of the last step.
    """
    ledger = Ledger(training.ledger.flops)
    ledger.load_state_dict(training.ledger.state_dict())
    batches = training.train_batches
    sizes = [samples_of(batches, i) for i in range(len(batches))]
    _book(ledger, training.phases, training.sparsifier, sizes, training.correction)
    return ledger


def _book(
    ledger: Ledger,
    phases: Sequence[Phase],
    sparsifier: Sparsifier,
    batch_sizes: Sequence[int],
    correction: Correction,
) -> None:
    """Book all phases; ``sparsifier``: before the first step; ``batch_sizes``: those of an epoch."""
    steps = partial(planned_steps, phases, sparsifier, batch_sizes)
    of_phases = steps()
    active: Mapping[str, int] = sparsifier.topology.active_by_layer
    for phase in phases:
        if phase.begin is not None:
            phase.begin.book(ledger, active, sum(batch_sizes))
        for step in islice(of_phases, phase.steps):
            active = step.active
            ledger.training.forward(active, step.samples)
            ledger.training.backward(active, step.samples)
            if step.dense_gradient:
                ledger.training.dense_gradient(active, step.samples)
        if phase.end is not None:
            phase.end.book(ledger, active, sum(batch_sizes))
    correction.book(ledger.correction, steps(), sum(batch_sizes))


def _time_step(parts: Parts, shard: Shard) -> float:
    """Return the median seconds of a step on a shard of each batch, its data included."""
    training = parts.training
    times: list[float] = []
    batches = training.train_batches.epoch(0, shard=shard)
    begun = time.perf_counter()
    while len(times) < _WARM_UP + _AT_LEAST or time.perf_counter() - begun < _TIMED_S:
        started = time.perf_counter()
        if training.replays.prepare(batches, training.train_batches):
            training.replay_step(NoObserver())
        elif (batch := next(batches, None)) is not None:
            training.train_step(*batch, NoObserver())
        else:  # the epoch is over: begin it again
            batches = training.train_batches.epoch(0, shard=shard)
            continue
        _wait()
        times.append(time.perf_counter() - started)
    return sorted(times[_WARM_UP:])[len(times[_WARM_UP:]) // 2]


def _time_evaluation(parts: Parts, shard: Shard) -> float:
    """Return the seconds of one validation, or test, on a shard of each batch, judged by the first batches."""
    training, batches = parts.training, parts.training.val_batches
    if batches is None:
        batches = parts.test_batches
    training.model.eval()
    few = min(3, len(batches))
    started = time.perf_counter()
    with torch.inference_mode():
        for inputs, _ in islice(batches.epoch(0, shard=shard), few):
            training.forward(inputs)
    _wait()
    training.model.train()
    return (time.perf_counter() - started) / few * len(batches)


def _wait() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        torch.cuda.synchronize()


def _bytes(state: Any) -> int:
    """Return the size of all tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(_bytes(value) for value in state.values())
    return sum(_bytes(value) for value in state) if isinstance(state, list | tuple) else 0


def _peak_memory() -> int:
    """Return the peak memory so far: the GPU's if one is used, otherwise this process's."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"
