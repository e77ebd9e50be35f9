"""What data costs: our batches against a per-sample DataLoader pipeline, and against no data work at all.

``python -m tests.bench.data [--mnist-root FOLDER]``, about two minutes on two cores. Everything that is compared runs
in turns in one process; figures are medians over the rounds, ratios are medians of the ratios of each round. On a busy
machine two threads wait for each other: there, take ``--threads 1``.

The comparison favours the others where it must favour a side: the pipeline gets padded uint8 tensors in memory (no
decoding, no PIL, no padding a sample) and workers that are already running; the pure compute reads a few ready batches
over and over, so they stay in the processor's cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dst.data.augment import Augment
from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.data.mnist import mnist

BATCH = 128
READY = 16
Step = Callable[[Tensor, Tensor], None]
Loader = DataLoader[tuple[Tensor, int]]


class Samples(TorchDataset[tuple[Tensor, int]]):
    """One sample at a time, as a transform pipeline sees it."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def synthetic(samples: int, channels: int, size: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (samples,), generator=generator))


def lenet_300_100() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def small_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, pool in [(3, 32, False), (32, 32, True), (32, 64, True), (64, 128, True)]:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10))


def training_step(model: nn.Module) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def pipeline(split: Split, mean: list[float], std: list[float], padding: int, flip: bool, workers: int) -> Loader:
    from torchvision.transforms import v2

    images = split.images
    transforms: list[nn.Module] = []
    if padding:
        images = functional.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
        transforms.append(v2.RandomCrop(split.images.shape[-1]))
    if flip:
        transforms.append(v2.RandomHorizontalFlip())
    transforms += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return DataLoader(
        Samples(images, split.labels, v2.Compose(transforms)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def consume(batches: Iterable[tuple[Tensor, Tensor]], step: Step | None = None) -> float:
    """Return the seconds that it takes."""
    begin = time.perf_counter()
    for images, labels in batches:
        if step is not None:
            step(images, labels)
    return time.perf_counter() - begin


def in_turns(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all candidates once to warm up, then ``rounds`` times in turns, each round beginning with another one."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(candidates[name]())
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def compare(
    title: str, split: Split, mean: list[float], std: list[float], augment: Augment, model: nn.Module, slices: list[int]
) -> None:
    """Measure one workload; ``slices``: batches per round of training, and of the pipeline."""
    trained, piped = slices
    ours = Batches(split, batch_size=BATCH, mean=mean, std=std, augment=augment, seed=0, shuffle=True)
    pipelines = [pipeline(split, mean, std, augment.crop_padding, augment.flip, workers) for workers in (0, 2)]
    ready = list(islice(ours.epoch(0), READY))
    step = training_step(model)
    epochs = iter(range(1_000_000))

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        return ours.epoch(next(epochs))

    times = in_turns(
        {
            "ours": lambda: consume(epoch()) / ours.samples,
            "pipeline, 0 workers": lambda: consume(islice(pipelines[0], piped)) / (piped * BATCH),
            "pipeline, 2 workers": lambda: consume(islice(pipelines[1], piped)) / (piped * BATCH),
            "pure": lambda: consume(islice(cycle(ready), trained), step),
            "fed": lambda: consume(islice(epoch(), trained), step),
        },
        rounds=5,
    )
    print(f"\n{title}\n  trained on {trained} of {len(ours)} batches a round; pipelines: {piped} batches a round")
    for name in ("ours", "pipeline, 0 workers", "pipeline, 2 workers"):
        versus = "" if name == "ours" else f"   {ratio(times[name], times['ours']):6.1f} x ours (target: 10 x or more)"
        print(f"  data, {name:20} {statistics.median(times[name]) * 1e6:8.2f} us a sample{versus}")
    print(f"  pure compute               {statistics.median(times['pure']) / trained * 1e3:8.2f} ms a step")
    print(f"  epoch / pure compute       {ratio(times['fed'], times['pure']):8.3f} x (target: 1.15 x or less)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist-root", type=Path, help="folder that holds MNIST/raw; without it, synthetic images")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    digits = mnist(options.mnist_root, download=False)[0] if options.mnist_root else synthetic(60_000, 1, 28)
    source = f"real, from {options.mnist_root}" if options.mnist_root else "synthetic, 60 000 x 1 x 28 x 28"
    print(f"torch {torch.__version__}, {options.threads} threads, batch {BATCH}; MNIST: {source}; colour: synthetic")
    compare("MNIST, plain, LeNet-300-100", digits, [0.1307], [0.3081], Augment(), lenet_300_100(), [200, 60])
    colour = synthetic(50_000, 3, 32)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    augment = Augment(crop_padding=4, flip=True)
    compare("50 000 x 3 x 32 x 32, crop 4 + flip, small VGG", colour, mean, std, augment, small_vgg(), [8, 20])


if __name__ == "__main__":
    main()
