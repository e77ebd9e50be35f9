"""What sparse kernels gain, layer by layer: ``python -m tests.bench.compute``.

Forward pass and both gradients of a layer with an unstructured mask, its layout included, against torch's dense layer
(channels-last). Interleaved; the least CPU time of each, so that other work on the machine counts little.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from dst.kernels import build
from dst.kernels.product import Tiles, product
from dst.kernels.shape import Shape
from dst.kernels.unstructured import Unstructured


@dataclass(frozen=True)
class _Layer:
    """A layer, and how many samples it is given."""

    shape: Shape
    samples: int

    def __str__(self) -> str:
        s = self.shape
        kind = f"linear {s.channels}x{s.outs}"
        if s.kernel != (1, 1) or s.height > 1:
            kind = f"conv {s.kernel[0]}x{s.kernel[1]}/{s.stride[0]} {s.channels}-{s.outs} {s.height}x{s.width}"
        return f"{kind} b{self.samples}"


def _conv(channels: int, outs: int, size: int, kernel: int = 3, stride: int = 1) -> Shape:
    return Shape(channels, outs, size, size, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))


LAYERS = (
    _Layer(Shape(784, 300), 128),
    _Layer(Shape(1024, 1024), 256),
    _Layer(Shape(4096, 4096), 128),
    _Layer(_conv(64, 64, 32), 32),
    _Layer(_conv(64, 128, 32, stride=2), 32),
    _Layer(_conv(256, 256, 16), 32),
    _Layer(_conv(512, 512, 4), 32),
    _Layer(_conv(256, 1024, 8, kernel=1), 32),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="samples of each measurement (default 7)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.02])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        library = build.load(Path(folder))
        print(
            f"torch {torch.__version__}, {build.level()}, {options.threads} threads: ms of a dense layer, x by density"
        )
        for layer in LAYERS:
            passes = {"dense": _dense(layer)} | {str(d): _packed(library, layer, d) for d in options.densities}
            found = {name: float("inf") for name in passes}
            for _ in range(options.rounds + 1):
                for name, action in passes.items():
                    found[name] = min(found[name], _timed(action))
            ratios = "  ".join(f"{d:g}: {found['dense'] / found[str(d)]:5.2f}x" for d in options.densities)
            print(f"  {layer!s:<32}{1e3 * found['dense']:8.2f} ms   {ratios}", flush=True)


def _inputs(layer: _Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs that need gradients, and gradients of outputs."""
    shape = layer.shape
    if shape.height == shape.width == 1:
        return torch.randn(layer.samples, shape.channels).requires_grad_(), torch.randn(layer.samples, shape.outs)
    x = torch.randn(layer.samples, shape.channels, shape.height, shape.width).to(memory_format=torch.channels_last)
    dy = torch.randn(layer.samples, shape.outs, *shape.out).to(memory_format=torch.channels_last)
    return x.requires_grad_(), dy


def _dense(layer: _Layer) -> Callable[[], None]:
    shape, (x, dy) = layer.shape, _inputs(layer)
    weight = torch.randn(shape.outs, shape.channels, *shape.kernel)
    weight = weight.flatten(1) if x.dim() == 2 else weight.to(memory_format=torch.channels_last)
    weight.requires_grad_()

    def action() -> None:
        x.grad = weight.grad = None
        y = F.linear(x, weight) if x.dim() == 2 else F.conv2d(x, weight, stride=shape.stride, padding=shape.padding)
        y.backward(dy)

    return action


def _packed(library: build.ctypes.CDLL, layer: _Layer, density: float) -> Callable[[], None]:
    shape, (x, dy) = layer.shape, _inputs(layer)
    mask = torch.rand(shape.outs, shape.channels, *shape.kernel) < density
    packed, pool = Unstructured(library, shape, mask), Tiles()
    values = torch.randn(len(packed.places)).requires_grad_()

    def action() -> None:
        x.grad = values.grad = None
        product(x, values, packed, pool).backward(dy)

    return action


def _timed(action: Callable[[], None]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


if __name__ == "__main__":
    main()
