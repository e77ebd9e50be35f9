"""What products with units of 16 channels gain on a GPU: ``python -m tests.bench.blocks_gpu``.

Each pass of a layer (forward; gradients of inputs, which has gradients of outputs brought into the order of groups; of
weights), and all three, against torch's dense layer: cuBLAS, or cuDNN with images that are channels-last. A block is
the rows of a group, a tenth of whose units is active, or another ``--densities``. For comparison, of linear layers:
torch's ``bsr_dense_addmm`` (forward) and blksprs if it can be imported, with the same units where they are square.

All variants take turns; figures are medians over the rounds, in microseconds a call, of ``--calls`` calls in a row
between two events: where the host is slower than the GPU, it is the host that is seen.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import UnitBlocks
from dst.kernels.units import BLOCKS, UNIT, units_of

try:
    import blksprs
except ImportError:
    blksprs = None

Action = Callable[[], object]
PASSES = ("forward", "input gradient", "weight gradient")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}


def _conv(channels: int, size: int, kernel: int = 3) -> Shape:
    return Shape(channels, channels, size, size, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2))


LAYERS = {
    "linear_1024": (Shape(1024, 1024), 8192),
    "linear_2048": (Shape(2048, 2048), 8192),
    "linear_4096": (Shape(4096, 4096), 8192),
    "conv_64": (_conv(64, 32), 128),
    "conv_128": (_conv(128, 32), 128),
    "conv_256": (_conv(256, 16), 128),
    "conv_512": (_conv(512, 8), 128),
    "conv_1x1_512": (_conv(512, 16, kernel=1), 128),
}
"""Name -> shape, samples."""


@dataclass(frozen=True)
class Figure:
    """What a pass of one variant takes, and how many times faster than dense it is."""

    layer: str
    samples: int
    dtype: str
    density: float
    block: int
    variant: str
    part: str
    microseconds: float
    ratio: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=[*LAYERS], default=[*LAYERS])
    parser.add_argument("--blocks", type=int, nargs="+", choices=sorted(BLOCKS), default=sorted(BLOCKS))
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES], default=["bf16", "fp32"])
    parser.add_argument("--densities", type=_density, nargs="+", default=[0.1])
    parser.add_argument("--samples", type=_positive, help="samples of a batch, instead of each layer's own")
    parser.add_argument("--rounds", type=_positive, default=15, help="samples of each measurement (default 15)")
    parser.add_argument("--calls", type=_positive, default=20, help="calls in a row of a sample (default 20)")
    parser.add_argument("--csv", type=Path, help="a file for all figures")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU on this machine")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {options.rounds} rounds", flush=True)
    figures = []
    for name in options.layers:
        for dtype in options.dtypes:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
            for density in options.densities:
                figures += _layer(name, dtype, density, options)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            table = csv.DictWriter(file, [*asdict(figures[0])])
            table.writeheader()
            table.writerows(asdict(figure) for figure in figures)


def _density(text: str) -> float:
    if not 0 < (density := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return density


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def drawn(shape: Shape, block: int, density: float) -> Tensor:
    """Return a mask, [outs, channels, height, width of the kernel]: random rows in groups, whose units are random.

    Each group has the same number of units, which is rounded.
    """
    columns, groups = shape.channels // UNIT * shape.taps, shape.outs // block
    order = torch.rand(groups, columns).argsort(1)
    has_unit = torch.zeros(groups, columns, dtype=torch.bool).scatter_(
        1, order[:, : max(1, round(density * columns))], True
    )
    rows = has_unit.repeat_interleave(block, 0)[torch.randperm(shape.outs)]
    wide = rows.view(shape.outs, -1, 1, shape.taps).expand(-1, -1, UNIT, -1)
    return wide.reshape(shape.outs, shape.channels, *shape.kernel)


def _layer(name: str, dtype: str, density: float, options: argparse.Namespace) -> Iterator[Figure]:
    torch.manual_seed(0)
    shape, samples = LAYERS[name]
    samples, kind = options.samples or samples, DTYPES[dtype]
    x = torch.randn(samples, shape.height, shape.width, shape.channels, dtype=kind, device="cuda")
    dy = torch.randn(samples, *shape.out, shape.outs, dtype=kind, device="cuda")
    actions = {("dense", 0): _dense(shape, x, dy)}
    for block in options.blocks:
        if shape.outs % block == 0:
            mask = drawn(shape, block, density)
            actions["units", block] = _units(shape, mask, block, x, dy)
            if shape.height == 1:
                actions |= _peers(mask.flatten(1), block, x.flatten(0, 2), dy.flatten(0, 2))
    times = _timed(actions, options.rounds, options.calls)
    print(f"{name} b{samples} {dtype}, density {density:g}: dense " + _told(times["dense", 0]))
    for (variant, block), own in times.items():
        ratios = {part: times["dense", 0][part] / own[part] for part in own}
        if variant != "dense":
            print(f"  {variant:<8}{block:>4}: " + "   ".join(f"{part} {ratio:.2f}x" for part, ratio in ratios.items()))
        for part, ratio in ratios.items():
            yield Figure(name, samples, dtype, density, block, variant, part, round(own[part], 2), round(ratio, 3))
    print(end="", flush=True)


def _told(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {microseconds:.1f} us" for part, microseconds in parts.items())


def _dense(shape: Shape, x: Tensor, dy: Tensor) -> dict[str, Action]:
    weight = torch.randn(shape.outs, shape.channels, *shape.kernel, dtype=x.dtype, device="cuda")
    if shape.height == 1:
        matrix, rows, gradients = weight.flatten(1), x.flatten(0, 2), dy.flatten(0, 2)
        return {
            "forward": lambda: F.linear(rows, matrix),
            "input gradient": lambda: gradients @ matrix,
            "weight gradient": lambda: gradients.t() @ rows,
        }
    weight = weight.to(memory_format=torch.channels_last)
    images, gradients = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)

    def backward(*wanted: bool) -> Action:
        geometry = None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1
        return lambda: torch.ops.aten.convolution_backward(gradients, images, weight, *geometry, (*wanted, False))

    return {
        "forward": lambda: F.conv2d(images, weight, stride=shape.stride, padding=shape.padding),
        "input gradient": backward(True, False),
        "weight gradient": backward(False, True),
    }


def _units(shape: Shape, mask: Tensor, block: int, x: Tensor, dy: Tensor) -> dict[str, Action]:
    layer = UnitBlocks(units_of(mask, block), shape, "cuda")
    values = torch.randn(layer.size, dtype=x.dtype, device="cuda")
    y, dx, ordered = torch.empty_like(dy), torch.empty_like(x), layer.in_order(dy)
    return {
        "forward": lambda: layer.forward(values, None, x, y),
        "input gradient": lambda: layer.input_gradient(values, layer.in_order(dy), dx),
        "weight gradient": lambda: layer.weight_gradient(x, ordered),
    }


def _peers(mask: Tensor, block: int, x: Tensor, dy: Tensor) -> dict[tuple[str, int], dict[str, Action]]:
    """Return others' products with the same units, of rows in the order of groups, where they have any."""
    from torch.sparse._triton_ops import bsr_dense_addmm

    weight = (torch.randn(mask.shape) * mask)[units_of(mask, block).rows].to(x)
    blocks, outputs = (
        weight.to_sparse_bsr((block, UNIT)),
        torch.zeros(mask.shape[0], len(x), dtype=x.dtype, device="cuda"),
    )
    found: dict[tuple[str, int], dict[str, Action]] = {
        ("bsr", block): {"forward": lambda: bsr_dense_addmm(outputs, blocks, x.t(), beta=0)}
    }
    if blksprs is not None:
        found["blksprs", block] = _of_blksprs(weight, block, x, dy)
    return found


def _of_blksprs(weight: Tensor, block: int, x: Tensor, dy: Tensor) -> dict[str, Action]:
    """Return its products, of square blocks: as many random ones as make the density."""
    side = min(block, 64)
    count = round(float(weight.count_nonzero()) / weight.numel() * weight.numel() / side**2)
    places = torch.zeros(weight.numel() // side**2, dtype=torch.bool)
    places[torch.randperm(len(places))[:count]] = True
    layout = places.view(1, weight.shape[1] // side, weight.shape[0] // side).cuda()
    values = blksprs.ops.to_sparse(weight.t()[None].contiguous(), layout, side).detach().requires_grad_()
    all_x, all_y = (torch.ones(1, len(x) // side, t.shape[1] // side, dtype=torch.bool, device="cuda") for t in (x, dy))
    inputs = blksprs.ops.to_sparse(x[None], all_x, side).detach().requires_grad_()
    gradient = blksprs.ops.to_sparse(dy[None], all_y, side)

    def forward() -> Tensor:
        return blksprs.ops.matmul(inputs, all_x, values, layout, all_y, side)

    return {"forward": forward, "all": lambda: torch.autograd.grad(forward(), (inputs, values), gradient)}


def _timed(
    actions: Mapping[tuple[str, int], Mapping[str, Action]], rounds: int, calls: int
) -> dict[tuple[str, int], dict[str, float]]:
    """Return the microseconds of each pass, after a round unseen; and of all, where each is known by itself."""
    times: dict[tuple[tuple[str, int], str], list[float]] = {}
    for number in range(rounds + 1):
        for key, parts in actions.items():
            for part, action in parts.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for _ in range(calls):
                    action()
                end.record()
                end.synchronize()
                if number:
                    times.setdefault((key, part), []).append(1e3 * begin.elapsed_time(end) / calls)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for (key, part), own in times.items():
        found.setdefault(key, {})[part] = statistics.median(own)
    for parts in found.values():
        if set(parts) == set(PASSES):
            parts["all"] = sum(parts.values())
    return found


if __name__ == "__main__":
    main()
