"""What the end of a cycle costs: ``python -m tests.bench.superpose``.

The time of superposing, pruning back and re-estimating batch norm, without validation, against a forward pass over the
training set by itself, its data included: random images of CIFAR's shape, density 0.1. Interleaved; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from dst.config.schema import complete
from dst.data.dataset import Dataset, Split
from dst.run import build as building
from dst.training.loop import Training
from dst.training.observer import NoObserver
from tests.composed import compose_cells
from tests.processes import REPOSITORY

OPTIONS = (
    *("sparsity=rigl_itop", "data=cifar10", "procedure=sup_tickets", "procedure.cycle_epochs=1"),
    *("procedure.re_explore=0.5", "schedule.epochs=10", "schedule.batch_size=128", "tracking=none"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each measurement (default 5)")
    parser.add_argument("--images", type=int, default=5000, help="of which a tenth is for validation (default 5000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    variants = {
        "reestimate": _after_a_cycle(options),
        "average": _after_a_cycle(options, "procedure.batch_norm=average"),
        "cima": _after_a_cycle(options, "procedure.superpose=cima", "procedure.pool=layer"),
        "active": _after_a_cycle(options, "procedure.average_over=active", "procedure.prune_back=end"),
    }
    actions: dict[str, Callable[[], None]] = {name: _action(training) for name, training in variants.items()}
    actions["forward"] = lambda: _forward(variants["reestimate"])
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(options.rounds + 1):
        for name, action in actions.items():
            times[name].append(_timed(action))
    found = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}  # the first one warms up
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads"
    print(f"torch {torch.__version__}, {on}, {options.model}, {options.images} images, {options.rounds} rounds")
    _report(found)


def _report(found: Mapping[str, float]) -> None:
    unit = found["forward"]
    print(f"  a forward pass over the training set  {unit:.3f} s")
    for name, told in {
        "reestimate": "superposing and re-estimation (<= 1.2)",
        "cima": "the same, a moving average, layers",
        "active": "the same, over active ones, not pruned",
        "average": "superposing and pruning back alone",
    }.items():
        print(f"  {told:<38}{found[name] / unit:.3f} of it")


def _after_a_cycle(options: argparse.Namespace, *overrides: str) -> Training:
    """Return a run after the last step of its first cycle, whose ticket is active in other places than before."""
    building.load_dataset = lambda _: _images(options.images)
    hardware = f"hardware={'gpu' if options.device == 'cuda' else 'cpu'}"
    given = [*OPTIONS, hardware, f"hardware.threads={options.threads}", f"model={options.model}", *overrides]
    ((_, config),) = compose_cells(REPOSITORY / "conf", given, multirun=False)
    training = building.build(complete(config)).training
    training.val_batches = None  # what validation costs is not measured
    training.phases[0].end(training, NoObserver(), lambda: None)
    training.sparsifier.set_masks([mask.flatten().roll(1).view_as(mask) for mask in training.sparsifier.topology.masks])
    training.counters.phase, training.counters.step = 1, training.phases[0].steps + training.phases[1].steps
    return training


def _images(number: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.randint(10, (count,), generator=generator))

    return Dataset("cifar10", split(number), split(100), classes=10, digest="0" * 64)


def _action(training: Training) -> Callable[[], None]:
    kept = training.kept

    def act() -> None:
        training.kept = kept
        training.phase.end(training, NoObserver(), lambda: None)

    return act


@torch.no_grad()
def _forward(training: Training) -> None:
    for inputs, _ in training.train_batches.epoch(8):
        training.forward(inputs)


def _timed(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
