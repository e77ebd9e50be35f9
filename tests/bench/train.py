"""Training speed: ``python -m tests.bench.train``; our whole pipeline against pure compute and against a plain loop.

CIFAR-shaped synthetic images with crop and flip, VGG-C and ResNet-18 at ERK density 0.1; topology updates are left to
``tests.bench.step``. All loops take turns in one process; figures are medians of the rounds' ratios.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.metrics.flops import Flops, Ledger, forward_flops
from dst.models.resnet_cifar import resnet18
from dst.models.vgg import vgg_c
from dst.sparsity import Sparsifier
from dst.training.distributed import ALONE
from dst.training.gradients import Gradients, Passes
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.optimizer import sgd
from dst.training.phase import Phase
from dst.training.precision import Precision
from dst.training.settings import Settings
from tests.bench.data import Samples
from tests.bench.timing import in_turns, seconds

MODELS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {"vgg_c": vgg_c, "resnet18": resnet18}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
Step = Callable[[], Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch", type=int, help="default 128 on a GPU, 32 on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps of a round; default 50 on a GPU, 3 on a CPU")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    batch, steps = options.batch or (128 if on_gpu else 32), options.steps or (50 if on_gpu else 3)
    images = torch.randint(256, (50_000 if on_gpu else 4_096, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(10, (len(images),)))
    name = torch.cuda.get_device_name() if on_gpu else f"cpu, {options.threads} threads"
    print(
        f"torch {torch.__version__}, {name}, batch {batch}, {options.rounds} rounds of {steps} steps; samples a second"
    )
    variants = [("fp32", False), *([("bf16", False), ("bf16", True)] if on_gpu else [])]
    for model in options.models:
        plain = {f"plain loop, {n} workers": plain_step(split, MODELS[model], options.device, batch, n) for n in (0, 2)}
        for precision, compiled in variants:
            make = partial(_training, split, MODELS[model], options.device, batch, precision, compiled)
            loops = {"ours": _ours(make()), "pure compute": pure_step(make()), **plain}
            actions = {name: partial(seconds, step, options.device, steps) for name, step in loops.items()}
            times = in_turns(actions, options.rounds)
            _report(f"{model}, {precision}{', compiled' if compiled else ''}", times, batch * steps)


def _training(split: Split, make: Any, device: str, batch: int, precision: str, compiled: bool) -> Training:
    torch.manual_seed(0)
    model = make((3, 32, 32), 10).to(device)
    channels_last = precision != "fp32"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    dense = forward_flops(model, (3, 32, 32))
    optimizer = sgd([{"params": list(model.parameters())}], 1e-4, weight_decay=5e-4)
    sparsifier = Sparsifier(model, optimizer, density=0.1)
    if compiled:
        model.compile()
    settings = Settings(
        seed=0, label_smoothing=0.0, accumulate=1, channels_last=channels_last, select="last",
        eval_every_epochs=1, log_every_steps=100, checkpoint_every_s=60.0, checkpoint_every_steps=None,
    )  # fmt: skip
    batches = Batches(
        split, batch_size=batch, device=device, mean=MEAN, std=STD, augment=Augment(4, flip=True), shuffle=True
    )
    return Training(
        gradients=Gradients(model, Passes(settings, Precision(precision, device), ALONE)),
        optimizer=optimizer, sparsifier=sparsifier, phases=[Phase("train", 10**9, lambda step: 1e-4, None)],
        train_batches=batches, val_batches=batches,
        ledger=Ledger(Flops(dense, {report.layer: report.size for report in sparsifier.layers})),
    )  # fmt: skip


def _ours(training: Training) -> Step:
    """The whole of it: data, augmentation, derived seeds, guard, masks, optimizer, counters."""

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from training.train_batches.epoch(epoch)
            epoch += 1

    batches = stream()
    return lambda: (training.train_step(*next(batches), NoObserver()), training._guard.check())


def pure_step(training: Training) -> Step:
    """Return a step of the same model and optimizer on one ready batch, and nothing else."""
    inputs, labels = next(iter(training.train_batches.epoch(0)))

    def step() -> None:
        loss = F.cross_entropy(training.forward(inputs), labels)
        training.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        training.optimizer.step()

    return step


def plain_step(
    split: Split, make: Any, device: str, batch: int, workers: int, *, precision: str = "fp32", augments: bool = True
) -> Step:
    """Return a step of what most published codes do: transforms by sample, torch's default SGD, no channels-last."""
    from torchvision.transforms import v2

    autocast = Precision(precision, device).autocast
    model = make(tuple(split.shape), 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    padded, (channels, size, _) = F.pad(split.images, (4,) * 4) if augments else split.images, split.shape
    transform = v2.Compose(
        [
            *([v2.RandomCrop(size), v2.RandomHorizontalFlip()] if augments else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN[:channels], STD[:channels]),
        ]
    )
    samples = Samples(padded, split.labels, transform)
    loader = DataLoader(
        samples, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=device != "cpu"
    )

    def stream() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    batches = stream()

    def step() -> None:
        inputs, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        with autocast():
            loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()

    return step


def _report(what: str, times: dict[str, list[float]], samples: int) -> None:
    print(what)
    for name, taken in times.items():
        ratio = statistics.median(other / own for own, other in zip(times["ours"], taken, strict=True))
        target = {"pure compute": "  (target: 0.9 or more)"}.get(name, "")
        speed = samples / statistics.median(taken)
        print(f"  {name:<24} {speed:10.0f} a second   ours is {ratio:6.3f} x as fast{target}", flush=True)


if __name__ == "__main__":
    main()
