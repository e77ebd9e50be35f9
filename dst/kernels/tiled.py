"""What products of layers have in common: activations in tiles (see ``tiles.h``), and memory for a call."""

import ctypes
import threading
from abc import ABC, abstractmethod
from math import prod
from typing import Final

import torch
from torch import Tensor

from dst.kernels.calls import at, long, threads
from dst.kernels.shape import Shape

_MANY: Final = 2**16

_MOST: Final = 2**31 - 1


class Tiled(ABC):
    """The products of one layer with the weights of a mask, for samples of one shape.

    ``places``: int64, the flat positions of its weights in the order in which ``values`` (float32, one for each) are
    expected and returned: it depends on the mask alone. Activations are channels-last, [samples, height, width,
    channels]. Raises ValueError for a shape that offsets of 32 bits cannot reach.
    """

    places: Tensor

    def __init__(self, library: ctypes.CDLL, shape: Shape) -> None:
        self.shape, self._library = shape, library
        for tile in (shape.input_tile, shape.gradient_tile):
            if prod(tile) > _MOST:
                raise ValueError(f"a tile of {tile} numbers is too large")

    @abstractmethod
    def forward(self, values: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> None:
        """Write the outputs of tiled inputs ``x`` into ``y``, channels-last."""

    @abstractmethod
    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Write the gradients of inputs into ``dx``, channels-last, from tiled gradients of outputs ``dy``."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradients of the values, from tiled inputs and tiled gradients of outputs."""

    # -- tiles ---------------------------------------------------------------------------------------------------------

    def tile_inputs(self, x: Tensor, to: Tensor) -> None:
        """Lay inputs into tiles, whose border is zero and stays so."""
        self._tile(x, to, *self.shape.padding)

    def tile_gradients(self, dy: Tensor, to: Tensor) -> None:
        """Lay gradients of outputs into tiles, whose border is zero and stays so."""
        top, _, left, _ = self.shape.border
        self._tile(dy, to, top, left)

    def _tile(self, found: Tensor, to: Tensor, top: int, left: int) -> None:
        sizes = *found.shape, to.shape[2], to.shape[3], top, left
        self._library.dst_tile(at(found), at(to), *map(long, sizes), threads_for(found.numel()))

    def untile(self, tiles: Tensor, to: Tensor, top: int = 0, left: int = 0) -> None:
        """Lay what is in tiles, inside a border, back."""
        sizes = *to.shape, tiles.shape[2], tiles.shape[3], top, left
        self._library.dst_untile(at(tiles), at(to), *map(long, sizes), threads_for(to.numel()))


class Scratch(threading.local):
    """Memory of a thread for what is needed within a call only: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.float32)

    def room(self, n: int) -> Tensor:
        """Return room for so many numbers; the next call may get the same."""
        if len(self._room) < n:
            self._room = torch.empty(n, dtype=torch.float32)
        return self._room


def offset(tile: tuple[int, ...], channel: Tensor, place: Tensor) -> Tensor:
    """Return how far from the beginning of a tile a channel lies, at so many places from the first."""
    _, rows, columns, block, samples = tile
    return ((channel // block * rows * columns + place) * block + channel % block) * samples


def threads_for(numbers: int) -> int:
    """Return on how many threads to copy so many numbers: a few are copied before another thread has woken up."""
    return threads() if numbers >= _MANY else 1
