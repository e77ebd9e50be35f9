"""What sparse compute gains on a CPU: ``python -m tests.bench.compute [layers|steps]``.

``layers``: forward pass and both gradients of a layer with an unstructured mask, and with blocks of rows that share
their columns, its layout included, against torch's dense layer. ``steps``: whole training steps (forward, backward, SGD
with momentum) of networks at ERK densities: dense, dense in bf16, masked, packed and packed in blocks, the same with
batch norm and dropout fused, and perceptrons of SparseLab's layers if that can be imported. Networks are channels-last.
A kind "blocks 16x1" has blocks of 16 rows, with columns one by one, of "32x16" of 32 rows with columns of 16 adjacent
channels at one tap.

All variants take turns, on the same inputs; figures are medians over the rounds, ratios are medians of the ratios of
each round. The CPU time of all threads is told in brackets: on a busy machine, take one thread and these.
``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`` holds torch and kernels to AVX2.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from dst import registry
from dst.kernels import build
from dst.kernels.blocks import alike
from dst.kernels.fused import fuse
from dst.kernels.product import Tiles, product, products
from dst.kernels.shape import Shape
from dst.sparsity import Sparsifier
from dst.sparsity.weights.packing import packed
from dst.training.guard import Guard
from dst.training.optimizer import sgd
from dst.training.precision import Precision

try:
    import sparselab
except ImportError:
    sparselab = None

DENSITIES = (0.2, 0.1, 0.05, 0.02)
Action = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """What one variant takes, in milliseconds, and how many times faster than dense fp32 it is."""

    kind: str
    name: str
    batch: int
    threads: int
    variant: str
    density: float
    wall_ms: float
    cpu_ms: float
    wall_ratio: float
    cpu_ratio: float


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "steps", "both"], nargs="?", default="both")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--blocks", nargs="*", default=["16x1"], help="rows x channels of blocks (default 16x1)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads (default 1)")
    parser.add_argument("--batch", type=int, help="samples of a step (default: 128 of perceptrons, 32 of others)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each measurement (default 7)")
    parser.add_argument("--csv", type=Path, help="a file for all figures")
    parser.add_argument("--figure", type=Path, help="a file for a drawing of the ratios")
    options = parser.parse_args()
    figures = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"torch {torch.__version__}, {build.level()}, {threads} threads, {options.rounds} rounds", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if options.what != "steps":
                figures += _layers(Path(folder), options.densities, options.blocks, threads, options.rounds)
            if options.what != "layers":
                for name in options.networks:
                    batch = options.batch or NETWORKS[name].batch
                    figures += _steps(
                        Path(folder), name, options.densities, options.blocks, batch, threads, options.rounds
                    )
    if options.csv:
        _write(options.csv, figures)
    if options.figure:
        _draw(options.figure, figures)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


@dataclass(frozen=True)
class _Layer:
    """A layer, and how many samples it is given."""

    shape: Shape
    samples: int

    @property
    def is_linear(self) -> bool:
        return self.shape.kernel == (1, 1) and self.shape.height == 1

    def __str__(self) -> str:
        s = self.shape
        if self.is_linear:
            return f"linear {s.channels}x{s.outs}"
        return f"conv {s.kernel[0]}x{s.kernel[1]}/{s.stride[0]} {s.channels}-{s.outs} {s.height}x{s.width}"


def _conv(channels: int, outs: int, size: int, kernel: int = 3, stride: int = 1) -> Shape:
    return Shape(channels, outs, size, size, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))


LAYERS = (
    _Layer(Shape(784, 300), 128),
    _Layer(Shape(1024, 1024), 256),
    _Layer(Shape(4096, 4096), 128),
    _Layer(_conv(16, 32, 32), 32),
    _Layer(_conv(32, 32, 32), 32),
    _Layer(_conv(64, 64, 32), 32),
    _Layer(_conv(128, 128, 16), 32),
    _Layer(_conv(256, 256, 16), 32),
    _Layer(_conv(256, 256, 8), 32),
    _Layer(_conv(512, 512, 4), 32),
    _Layer(_conv(512, 512, 2), 32),
    _Layer(_conv(64, 128, 32, stride=2), 32),
    _Layer(_conv(256, 512, 8, stride=2), 32),
    _Layer(_conv(64, 256, 32, kernel=1), 32),
    _Layer(_conv(512, 128, 16, kernel=1), 32),
    _Layer(_conv(256, 1024, 8, kernel=1), 32),
    _Layer(_conv(512, 1024, 16, kernel=1, stride=2), 32),
)


def _in_blocks(size: Sequence[int], block: str, density: float) -> Tensor | None:
    """Return a mask in blocks, or None if they do not divide the layer."""
    rows, unit = map(int, block.split("x"))
    outs, channels, *kernel = size
    if outs % rows or channels % unit:
        return None
    units = torch.rand(outs // rows, channels // unit, *kernel).flatten(1)
    kept = torch.zeros_like(units, dtype=torch.bool)
    kept.scatter_(1, units.topk(max(1, round(density * units.shape[1]))).indices, value=True)
    columns = kept.view(outs // rows, channels // unit, *kernel).repeat_interleave(unit, 1)
    mask = torch.empty(*size, dtype=torch.bool)
    mask[torch.randperm(outs)] = columns.repeat_interleave(rows, 0)
    return mask


def _layers(
    folder: Path, densities: Sequence[float], blocks: Sequence[str], threads: int, rounds: int
) -> Iterator[Figure]:
    library = build.load(folder)
    for layer in LAYERS:
        actions = {("dense", 1.0): _dense_layer(layer)}
        size = layer.shape.outs, layer.shape.channels, *layer.shape.kernel
        actions |= {("packed", d): _packed_layer(library, layer, torch.rand(size) < d) for d in densities}
        masks = {(f"blocks {block}", d): _in_blocks(size, block, d) for block in blocks for d in densities}
        actions |= {key: _packed_layer(library, layer, mask) for key, mask in masks.items() if mask is not None}
        if sparselab and layer.is_linear:
            actions |= {("sparselab", density): _sparselab_layer(layer, density) for density in densities}
        yield from _measured("layer", str(layer), layer.samples, threads, actions, rounds)


def _inputs(layer: _Layer) -> tuple[Tensor, Tensor]:
    """Return inputs that need gradients, and gradients of outputs."""
    shape = layer.shape
    if layer.is_linear:
        return torch.randn(layer.samples, shape.channels).requires_grad_(), torch.randn(layer.samples, shape.outs)
    x = torch.randn(layer.samples, shape.channels, shape.height, shape.width).to(memory_format=torch.channels_last)
    dy = torch.randn(layer.samples, shape.outs, *shape.out).to(memory_format=torch.channels_last)
    return x.requires_grad_(), dy


def _dense_layer(layer: _Layer) -> Action:
    shape, (x, dy) = layer.shape, _inputs(layer)
    weight = torch.randn(shape.outs, shape.channels, *shape.kernel)
    weight = weight.flatten(1) if x.dim() == 2 else weight.to(memory_format=torch.channels_last)
    weight.requires_grad_()

    def action() -> None:
        x.grad = weight.grad = None
        y = F.linear(x, weight) if x.dim() == 2 else F.conv2d(x, weight, stride=shape.stride, padding=shape.padding)
        y.backward(dy)

    return action


def _packed_layer(library: build.ctypes.CDLL, layer: _Layer, mask: Tensor) -> Action:
    x, dy = _inputs(layer)
    packed, pool = products(library, layer.shape, mask, alike(mask)), Tiles()
    values = torch.randn(len(packed.places)).requires_grad_()

    def action() -> None:
        x.grad = values.grad = None
        product(x, values, packed, pool).backward(dy)

    return action


def _sparselab_layer(layer: _Layer, density: float) -> Action:
    shape, (x, dy) = layer.shape, _inputs(layer)
    linear = sparselab.SparseLinear(shape.channels, shape.outs, bias=False, sparsity=1 - density)

    def action() -> None:
        x.grad = None
        linear.zero_grad()
        linear(x).backward(dy)

    return action


# ---------------------------------------------------------------------------------------------------------------------
# Steps


@dataclass(frozen=True)
class _Network:
    """A network, the shape of its samples, and how many it is given."""

    model: str
    shape: tuple[int, ...]
    batch: int
    has_norms: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


CIFAR = (3, 32, 32)
NETWORKS = {
    "lenet_300_100": _Network("lenet_300_100", (1, 28, 28), 128, has_norms=False),
    "mlp_4096": _Network("mlp", (1, 28, 28), 128, has_norms=False, options={"hidden": [4096, 4096]}),
    "vgg_c": _Network("vgg_c", CIFAR, 32),
    "vgg_d": _Network("vgg_d", CIFAR, 32),
    "wrn_22_2": _Network("wrn_22_2", CIFAR, 32),
    "resnet18": _Network("resnet18", CIFAR, 32),
    "resnet50_cifar": _Network("resnet50_cifar", CIFAR, 32),
}


def _steps(
    folder: Path,
    name: str,
    densities: Sequence[float],
    blocks: Sequence[str],
    batch: int,
    threads: int,
    rounds: int,
) -> Iterator[Figure]:
    network = NETWORKS[name]
    inputs, labels = torch.randn(batch, *network.shape), torch.randint(10, (batch,))
    if len(network.shape) == 3:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    variants: list[tuple[str, float]] = [("dense", 1.0), ("dense bf16", 1.0)]
    variants += [
        (kind, density)
        for kind in ("masked", "packed", *(f"blocks {block}" for block in blocks))
        for density in densities
    ]
    if network.has_norms:
        variants += [(f"{kind} fused", density) for kind, density in variants if kind != "dense bf16"]
    if sparselab and not network.has_norms:
        variants += [("sparselab", density) for density in densities]
    actions = {(kind, density): _step(folder, network, kind, density, inputs, labels) for kind, density in variants}
    yield from _measured("step", name, batch, threads, actions, rounds)


def _step(folder: Path, network: _Network, kind: str, density: float, inputs: Tensor, labels: Tensor) -> Action:
    """Return a training step as in ``dst.training.loop``."""
    torch.manual_seed(0)
    how, *more = kind.split()
    model = registry.find("model", network.model).load()(network.shape, 10, **network.options)
    model = model.to(memory_format=torch.channels_last)
    if how == "sparselab":
        model, how = _of_sparselab(model, density), "dense"
    optimizer = sgd([{"params": list(model.parameters())}], 1e-4, weight_decay=5e-4)
    sparse: dict[str, Any] = {"density": None, "distribution": "dense"}
    if how != "dense":
        compute = "masked" if how == "masked" else packed(folder)
        sparse = {"density": density, "distribution": "erk", "compute": compute}
    sparsifier = Sparsifier(model, optimizer, **sparse) if kind != "sparselab" else None
    if how == "blocks" and sparsifier is not None:
        topology = sparsifier.topology
        shares = [active / layer.size for layer, active in zip(topology.layers, topology.counts, strict=True)]
        drawn = [
            None if share == 1 else _in_blocks(mask.shape, more[0], share)
            for mask, share in zip(topology.masks, shares, strict=True)
        ]
        pairs = zip(drawn, topology.masks, strict=True)
        sparsifier.set_masks([mask if blocks is None else blocks for blocks, mask in pairs])
    if "fused" in more:
        fuse(model, folder)
    guard, precision = Guard(optimizer, model), Precision("bf16" if "bf16" in more else "fp32", "cpu")

    def step() -> None:
        with precision.autocast():
            loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        guard.note(1, guard.judge(loss.detach()))
        (sparsifier or optimizer).step()
        guard.check()

    return step


def _of_sparselab(model: nn.Module, density: float) -> nn.Module:
    """Return a perceptron whose layers, as sparse as ERK makes them, are SparseLab's."""
    optimizer = sgd([{"params": list(model.parameters())}], 1e-4)
    topology = Sparsifier(model, optimizer, density=density, distribution="erk").topology
    for layer, active in zip(topology.layers, topology.counts, strict=True):
        plain = layer.places[0].module
        if active < layer.size:
            share = active / layer.size
            own = sparselab.SparseLinear(plain.in_features, plain.out_features, sparsity=1 - share)
            setattr(model, layer.places[0].name.split(".")[0], own)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def _measured(
    kind: str, name: str, batch: int, threads: int, actions: Mapping[tuple[str, float], Action], rounds: int
) -> list[Figure]:
    """Time actions in turns, after a round of warming up, and print them; the first is what others are compared to."""
    walls: dict[tuple[str, float], list[float]] = {key: [] for key in actions}
    cpus: dict[tuple[str, float], list[float]] = {key: [] for key in actions}
    for number in range(rounds + 1):
        for key, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                walls[key].append(wall)
                cpus[key].append(cpu)
    first = next(iter(actions))
    figures = [
        Figure(
            *(kind, name, batch, threads, *key),
            *(round(1e3 * statistics.median(times[key]), 4) for times in (walls, cpus)),
            *(round(_ratio(times[first], times[key]), 3) for times in (walls, cpus)),
        )
        for key in actions
    ]
    print(f"  {name} b{batch}: dense {figures[0].wall_ms:.2f} ms, CPU {figures[0].cpu_ms:.2f}")
    for variant in dict.fromkeys(figure.variant for figure in figures[1:]):
        told = [figure for figure in figures[1:] if figure.variant == variant]
        print(
            f"    {variant:<14}" + "   ".join(f"{f.density:g}: {f.wall_ratio:5.2f} ({f.cpu_ratio:5.2f})" for f in told)
        )
    print(end="", flush=True)
    return figures


def _ratio(dense: Iterable[float], other: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(dense, other, strict=True))


def _write(path: Path, figures: Sequence[Figure]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*asdict(figures[0])])
        table.writeheader()
        table.writerows(asdict(figure) for figure in figures)


def _draw(path: Path, figures: Sequence[Figure]) -> None:
    """Draw how many times faster than dense fp32 each variant is, by density: a panel for each layer or network."""
    from matplotlib.figure import Figure as Drawing  # which measuring alone does not need

    panels: dict[str, list[Figure]] = {}
    for figure in figures:
        panels.setdefault(f"{figure.name} b{figure.batch}, {figure.threads} threads", []).append(figure)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    drawing = Drawing(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    places = drawing.subplots(rows, columns, squeeze=False).flatten()
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(f.variant for f in figures))}
    for place, (title, found) in zip(places, panels.items(), strict=False):
        place.set_title(title, fontsize=9)
        for variant in dict.fromkeys(figure.variant for figure in found):
            points = sorted((f.density, _shown(f)) for f in found if f.variant == variant)
            if variant.startswith("dense"):
                place.axhline(points[0][1], color=colours[variant], linestyle="--", label=variant)
            else:
                place.plot(*zip(*points, strict=True), "o-", color=colours[variant], label=variant)
        densities = sorted({figure.density for figure in found if figure.density < 1})
        place.set(xscale="log", xlabel="density", ylabel="x dense fp32", ylim=(0, None))
        place.set_xticks(densities, [f"{density:g}" for density in densities], minor=False)
        place.minorticks_off()
    for place in places[len(panels) :]:
        place.remove()
    lines = {
        label: line for place in drawing.axes for line, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    drawing.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=8)
    drawing.savefig(path, dpi=150)


def _shown(figure: Figure) -> float:
    """Return the ratio that counts: of one thread that of CPU time, which others on the machine disturb less."""
    return figure.cpu_ratio if figure.threads == 1 else figure.wall_ratio


if __name__ == "__main__":
    main()
