"""What it costs that Adam knows the age of each weight: ``python -m tests.bench.adam``.

Networks are trained by ``rigl_itop`` and AdamW through some updates of the topology, once by the ages of weights and
once by those of tensors. Then ordinary steps of the two are compared, in one interleaved run: the whole step as the
training loop takes it, and the optimizer's alone. Medians, as ratios; first as many grown weights as training has left,
then as if every active weight had been grown, which is the most that there can be.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dst.config.schema import complete
from dst.run.build import build
from dst.training.loop import Training
from dst.training.observer import NoObserver
from tests.bench.step import CONF, interleaved, print_ratio
from tests.composed import compose_cells

NETWORKS = {
    "lenet_300_100": (28, 1.0),
    "mlp": (8, 1.0),
    "resnet20": (32, 0.1),
}
"""Network -> the size of its images, and its share of the rounds."""

UPDATES, EVERY, BATCH = 20, 10, 128
TARGET = "1.05 x or less"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=301, help="samples of each measurement (default 301)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    on = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"cpu, {options.threads} threads"
    print(f"torch {torch.__version__}, {on}, batch {BATCH}, AdamW, rigl_itop, density 0.1")
    for name in options.networks:
        size, share = NETWORKS[name]
        rounds = options.rounds if options.device != "cpu" else max(11, int(share * options.rounds))
        _compare(name, size, options.device, options.threads, rounds)


def _compare(name: str, size: int, device: str, threads: int, rounds: int) -> None:
    inputs, labels = torch.randn(BATCH, 1, size, size, device=device), torch.randint(10, (BATCH,), device=device)
    trainings = {age: _trained(name, size, device, threads, age, inputs, labels) for age in ("tensor", "weight")}
    topology = trainings["weight"].sparsifier.topology
    for everything in (False, True):
        if everything:
            trainings["weight"].sparsifier.weights._ages.changed(topology.masks, topology.masks)
        grown = sum(len(layer.positions) for layer in trainings["weight"].sparsifier.weights._ages._layers)
        print(f" {name}: {grown:,} of {topology.active:,} active weights grown, {topology.size:,} in all")
        whole = {age: partial(training.train_step, inputs, labels, NoObserver()) for age, training in trainings.items()}
        times = interleaved(whole, rounds, device)
        print_ratio("whole training step", times["weight"], times["tensor"], TARGET)
        alone: dict[str, Callable[[], object]] = {age: training.optimizer.step for age, training in trainings.items()}
        times = interleaved(alone, rounds, device)
        print_ratio("optimizer step alone", times["weight"], times["tensor"], "reported")


def _trained(name: str, size: int, device: str, threads: int, age: str, inputs: Tensor, labels: Tensor) -> Training:
    """Return a training after its last update of the topology."""
    options = ["sparsity=rigl_itop", f"model={name}", f"data.size={size}", f"schedule.batch_size={BATCH}"]
    adam = ["schedule.optimizer.name=adamw", "schedule.lr.peak=0.001", f"sparsity.update.adam_age={age}"]
    length = ["schedule.epochs=100000", f"schedule.update_every={EVERY}", "tracking=none"]
    where = [f"hardware.device={device}", f"hardware.threads={threads}"]
    ((_, config),) = compose_cells(CONF, [*options, *adam, *length, *where], multirun=False)
    training = build(complete(config)).training
    for _ in range(UPDATES * EVERY if size < 32 or device != "cpu" else 2 * EVERY):
        training.train_step(inputs, labels, NoObserver())
    training.sparsifier.begin(None)
    return training


if __name__ == "__main__":
    main()
