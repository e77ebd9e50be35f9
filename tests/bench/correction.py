"""What AGENT costs in time against what it costs in FLOPs: ``python -m tests.bench.correction``.

Epochs of the training loop with and without it, in turns, from the second one on; medians of the rounds' ratios.
"""

import argparse
import statistics
import time

import torch

from dst.config.schema import complete
from dst.run.build import build
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from dst.training.watch import Watch
from tests.bench.step import CONF
from tests.composed import compose_cells

PLAIN = "plain"
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "agent": ("correction=agent", "correction.variance_batches=0"),
    "agent, proxy=gradient": ("correction=agent", "correction.variance_batches=0", "correction.proxy=gradient"),
    "agent, measuring": ("correction=agent",),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["lenet_5", "resnet20"])
    parser.add_argument("--method", default="rigl_itop")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads"
    print(f"torch {torch.__version__}, {on}, {options.method}, batch {options.batch}, {options.rounds} epochs each")
    for model in options.models:
        _report(model, *_measure({name: _training(model, more, options) for name, more in VARIANTS.items()}, options))


def _training(model: str, more: tuple[str, ...], options: argparse.Namespace) -> Training:
    given = [
        f"sparsity={options.method}",
        f"model={model}",
        f"schedule.batch_size={options.batch}",
        "data.size=32",
        *more,
    ]
    length = ["schedule.epochs=1000", "schedule.update_every=1000", "schedule.lr.peak=0.001", "tracking=none"]
    ((_, config),) = compose_cells(CONF, [*given, *length, f"hardware.device={options.device}"], multirun=False)
    config.hardware.threads = options.threads
    return build(complete(config)).training


def _measure(
    trainings: dict[str, Training], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Return the seconds and the FLOPs of the epochs of each."""
    times: dict[str, list[float]] = {name: [] for name in trainings}
    flops: dict[str, list[int]] = {name: [] for name in trainings}
    watches = {name: Watch(run.settings, run.processes, StopFlag()) for name, run in trainings.items()}
    for run in trainings.values():
        run._started = time.perf_counter()
    for number in range(options.rounds + 2):
        for name, run in trainings.items():
            _wait(options.device)
            booked, started = _booked(run), time.perf_counter()
            run._train_epoch(NoObserver(), watches[name])
            _wait(options.device)
            if number >= 2:  # the first epoch has no estimate, the second warms that up
                times[name].append(time.perf_counter() - started)
                flops[name].append(_booked(run) - booked)
    return times, flops


def _booked(run: Training) -> int:
    return run.ledger.total + run.ledger.measuring.total


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _report(model: str, times: dict[str, list[float]], flops: dict[str, list[int]]) -> None:
    print(model)
    for name, seconds in times.items():
        slower = statistics.median(own / plain for own, plain in zip(seconds, times[PLAIN], strict=True))
        more = statistics.median(own / plain for own, plain in zip(flops[name], flops[PLAIN], strict=True))
        target = "" if name == PLAIN else "   (target: 1.2 or less)"
        told = f"{slower:.2f} x in time, {more:.2f} x in FLOPs: {slower / more:.3f}{target}"
        print(f"  {name:<24} {1e3 * statistics.median(seconds):8.1f} ms an epoch   {told}", flush=True)


if __name__ == "__main__":
    main()
