"""The shapes of layers and their activations, and where positions lie in tiles (see ``unstructured.c``)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

SAMPLES: Final = 32
"""Samples of a tile."""

BLOCK: Final = 16
"""Channels of a block."""

_STRIP: Final = 8
"""Columns that are computed row by row before the next ones, so that rows are still in the cache when they are met."""


@dataclass(frozen=True)
class Shape:
    """The shape of a layer and of a sample; heights come before widths.

    ``kernel``, ``stride``, ``padding``: two numbers each. A linear layer has height and width 1 and a kernel of 1 x 1.
    """

    channels: int
    outs: int
    height: int = 1
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def taps(self) -> int:
        """Weights from one channel to one output."""
        return self.kernel[0] * self.kernel[1]

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of an output."""
        size, padding, kernel, stride = (self.height, self.width), self.padding, self.kernel, self.stride
        high, wide = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
        return high, wide

    @property
    def border(self) -> tuple[int, int, int, int]:
        """Top, bottom, left and right border of an output's gradient: how far the gradients of inputs reach out."""
        return *_reach(self, 0), *_reach(self, 1)

    @property
    def input_tile(self) -> tuple[int, int, int, int, int]:
        """The shape of a tile of inputs, with the border of the padding."""
        rows, columns = self.height + 2 * self.padding[0], self.width + 2 * self.padding[1]
        return -(-self.channels // BLOCK), rows, columns, BLOCK, SAMPLES

    @property
    def gradient_tile(self) -> tuple[int, int, int, int, int]:
        """The shape of a tile of gradients of outputs, with their border."""
        (height, width), (top, bottom, left, right) = self.out, self.border
        return -(-self.outs // BLOCK), top + height + bottom, left + width + right, BLOCK, SAMPLES


def tiles_of(samples: int) -> int:
    """Return how many tiles a batch takes."""
    return -(-samples // SAMPLES)


def _reach(shape: Shape, axis: int) -> tuple[int, int]:
    """Return how far before and after the outputs lie those that the first and the last input ask for."""
    size, kernel = (shape.height, shape.width)[axis], shape.kernel[axis]
    stride, padding, out = shape.stride[axis], shape.padding[axis], shape.out[axis]
    return max(0, (kernel - 1 - padding) // stride), max(0, (size - 1 + padding) // stride - (out - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Positions


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions that are computed together: ``group`` 4, 2 or 1 at a time.

    ``inside``, ``out``: int64, bases of inputs and outputs of each group; ``in_steps``, ``out_steps``: int64, two each:
    the members of a group lie at 0, the first, the second and both. All in numbers (of 4 bytes).
    """

    group: int
    inside: Tensor
    in_steps: Tensor
    out: Tensor
    out_steps: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The positions of all passes.

    ``outputs``: from inputs to outputs; ``gradients``: from inputs to gradients of outputs; ``classes``: from gradients
    of outputs to those of inputs, for each class of inputs (``classes_of``).
    """

    outputs: list[Positions]
    gradients: list[Positions]
    classes: list[list[Positions]]


def classes_of(shape: Shape) -> list[tuple[int, int]]:
    """Return the first place of each class of inputs: all inputs of a class are reached by the same taps."""
    return [(y, x) for y in range(min(shape.stride[0], shape.height)) for x in range(min(shape.stride[1], shape.width))]


@lru_cache(maxsize=512)
def layout(shape: Shape, tiles: int) -> Layout:
    """Return the positions of a number of tiles."""
    inside, gradient = _strides(shape.input_tile), _strides(shape.gradient_tile)
    top, _, left, _ = shape.border
    (down, right), grid = shape.stride, (tiles, *shape.out)
    met = inside[0], inside[1] * down, inside[2] * right
    out, plain = _plain(*shape.out, shape.outs), _plain(shape.height, shape.width, shape.channels)
    spread = plain[0], plain[1] * down, plain[2] * right
    return Layout(
        outputs=_positions(grid, met, 0, out, 0),
        gradients=_positions(grid, met, 0, gradient, top * gradient[1] + left * gradient[2]),
        classes=[
            _positions(
                (tiles, -(-(shape.height - y) // down), -(-(shape.width - x) // right)),
                *(gradient, 0, spread, y * plain[1] + x * plain[2]),
            )
            for y, x in classes_of(shape)
        ],
    )


_Grid = tuple[int, int, int]
"""Something of tiles, rows and columns."""


def _positions(sizes: _Grid, inside: _Grid, in_start: int, out: _Grid, out_start: int) -> list[Positions]:
    """Return all positions of a grid, in groups as far as that goes; strides and starts of both sides in numbers.

    It follows from the shape alone, since it changes the order in which gradients of weights are added up.
    """
    found = []
    for first, last, axes in _groups((0, 0, 0), sizes):
        places = [
            torch.arange(a, b, 2 ** axes.count(axis)) for axis, (a, b) in enumerate(zip(first, last, strict=True))
        ]
        tile, row, column = (grid.flatten() for grid in torch.meshgrid(*places, indexing="ij"))
        order = torch.argsort((tile * sizes[2] + column // _STRIP) * sizes[1] + row, stable=True)
        bases, steps = [], []
        for step, start in ((inside, in_start), (out, out_start)):
            bases.append((start + tile * step[0] + row * step[1] + column * step[2])[order])
            one, two = (step[axis] for axis in axes + (0,) * (2 - len(axes)))
            steps.append(torch.tensor([one, two * (2 if axes[1:] == axes[:1] else 1)]))
        if len(order):
            found.append(Positions(2 ** len(axes), bases[0], steps[0], bases[1], steps[1]))
    return found


def _groups(first: _Grid, last: _Grid) -> list[tuple[_Grid, _Grid, tuple[int, ...]]]:
    """Return the bounds of parts of a grid, and the axes along which each is computed two at a time.

    Four in a row of columns are best, then a square, then rows, then tiles. If nothing divides, as much as does of the
    longest axis is cut off.
    """
    tile, row, column = 0, 1, 2
    sizes = [end - begin for begin, end in zip(first, last, strict=True)]
    for axes in ((column, column), (row, column), (row, row), (tile, tile), (tile, column), (tile, row)):
        if all(sizes[axis] % 2 ** axes.count(axis) == 0 for axis in axes):
            return [(first, last, axes)]
    axis = max((column, row, tile), key=lambda axis: sizes[axis])
    if sizes[axis] == 1:
        return [(first, last, ())]
    by = 4 if sizes[axis] > 3 else 2
    cut = first[axis] + sizes[axis] // by * by
    whole = first, _with(last, axis, cut), (axis,) * (by // 2)
    return [whole, *(_groups(_with(first, axis, cut), last) if cut < last[axis] else [])]


def _with(grid: _Grid, axis: int, place: int) -> _Grid:
    found = list(grid)
    found[axis] = place
    return found[0], found[1], found[2]


def _strides(tile: tuple[int, ...]) -> _Grid:
    """Return the strides of tiles, rows and columns."""
    blocks, rows, columns, channels, samples = tile
    place = channels * samples
    return blocks * rows * columns * place, columns * place, place


def _plain(height: int, width: int, channels: int) -> _Grid:
    """Return the strides of tiles, rows and columns of activations that lie channels-last."""
    return SAMPLES * height * width * channels, width * channels, channels
