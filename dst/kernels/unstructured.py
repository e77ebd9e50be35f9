"""Products with unstructured weights: what a layer's mask and shape become for the kernels, and the three passes."""

import ctypes
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Final

import torch
from torch import Tensor

from dst.kernels.calls import at, long, threads
from dst.kernels.shape import SAMPLES, Positions, Shape, classes_of, layout
from dst.kernels.tiled import Scratch, Tiled, offset, threads_for

_CHUNK_OF_LINEAR, _CHUNK_OF_CONVOLUTION = 64, 16
"""Input channels of a chunk at least: what they and their taps hold should stay in the cache."""

_LONG: Final = 12
"""Weights of an output in a chunk, on average, from which on its sums are not what takes most of the time."""

_MOST_OUTPUTS: Final = 512
"""Outputs of a range at most: those of four positions should stay in the cache, too."""

_SPAN: Final = 1024
"""Outputs times groups of positions whose gradients should stay in the cache while all chunks meet them."""


@dataclass(frozen=True, eq=False)
class _Table:
    """Weights as a pass meets them: sorted by (chunk of inputs, output).

    ``order``: int32, which weight of those it was made of; ``offsets``: int32, of their inputs; ``starts``: int32,
    [chunks, outs + 1].
    """

    order: Tensor
    offsets: Tensor
    starts: Tensor

    @property
    def outs(self) -> int:
        return self.starts.shape[1] - 1

    @property
    def chunks(self) -> int:
        return len(self.starts)

    def cuts(self, ranges: int, whole: int) -> Tensor:
        """Return where to cut the outputs, so that all ranges have about as many weights and multiples of ``whole``."""
        before = (self.starts[:, 1:] - self.starts[:, :1]).sum(0).double()
        marks = torch.arange(1, ranges) * (before[-1] / ranges)
        inner = (torch.searchsorted(before, marks) + whole // 2) // whole * whole
        return torch.cat([torch.tensor([0]), inner, torch.tensor([self.outs])]).clamp(max=self.outs).int()


class Unstructured(Tiled):
    """The products with the weights of any mask: boolean, [outs, channels(, height, width)]."""

    def __init__(self, library: ctypes.CDLL, shape: Shape, mask: Tensor) -> None:
        super().__init__(library, shape)
        listed = self._listed(mask)
        self._density = len(listed[0]) / mask.numel()
        self._forward = self._table_of_outputs(*listed)
        output, column = (numbers[self._forward.order] for numbers in listed)
        self.places = output.long().mul_(shape.channels * shape.taps).add_(column)
        channel, tap = (column, None) if shape.taps == 1 else (column // shape.taps, column % shape.taps)
        self._backward = [self._table_of_inputs(output, channel, tap, y, x) for y, x in classes_of(shape)]
        self._known: dict[tuple[int, int, int], tuple[Tensor, int]] = {}

    # -- tables --------------------------------------------------------------------------------------------------------

    def _listed(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and column of each weight of a mask, int32, in the order of its rows."""
        rows = mask.reshape(self.shape.outs, -1).contiguous()
        n = int(rows.count_nonzero())
        output, column = torch.empty(n, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
        self._library.dst_list(at(rows), *map(long, rows.shape), at(output), at(column))
        return output, column

    def _table_of_outputs(self, output: Tensor, column: Tensor) -> _Table:
        """Return the table of the forward pass and of the gradients of weights, given by output and column."""
        shape, inputs = self.shape, self.shape.channels * self.shape.taps
        channel, tap = torch.arange(inputs) // shape.taps, torch.arange(inputs) % shape.taps
        place = tap // shape.kernel[1] * shape.input_tile[2] + tap % shape.kernel[1]
        offset_of = offset(shape.input_tile, channel, place)
        return self._table(output, column, shape.outs, channel // self._chunk(shape.channels), offset_of)

    def _chunk(self, channels: int) -> int:
        """Return how many of so many channels are a chunk."""
        size = _CHUNK_OF_LINEAR if self.shape.taps == 1 else _CHUNK_OF_CONVOLUTION
        while size < channels and size * self.shape.taps * self._density < _LONG:
            size *= 2
        return size

    def _table_of_inputs(self, output: Tensor, channel: Tensor, tap: Tensor | None, y: int, x: int) -> _Table:
        """Return the table of the gradients of the inputs of a class, given by output, channel and tap, all int32.

        ``tap``: None if there is one only.
        """
        shape = self.shape
        taps = torch.arange(shape.taps)
        above, before = y + shape.padding[0] - taps // shape.kernel[1], x + shape.padding[1] - taps % shape.kernel[1]
        reaches = (above % shape.stride[0] == 0) & (before % shape.stride[1] == 0)
        top, _, left, _ = shape.border
        place = (above // shape.stride[0] + top) * shape.gradient_tile[2] + before // shape.stride[1] + left
        out = torch.arange(shape.outs)[:, None]
        offset_of = offset(shape.gradient_tile, out, place)
        chunk = (out // self._chunk(shape.outs)).expand(-1, shape.taps)
        met = output if tap is None else output * shape.taps + tap
        sort = partial(self._table, outs=shape.channels, chunk_of=chunk.flatten(), offset_of=offset_of.flatten())
        if reaches.all():
            return sort(channel, met)
        which = (reaches.expand(len(channel), -1)[:, 0] if tap is None else reaches[tap]).nonzero()[:, 0].int()
        found = sort(channel[which], met[which])
        return _Table(which[found.order], found.offsets, found.starts)

    def _table(self, output: Tensor, input_: Tensor, outs: int, chunk_of: Tensor, offset_of: Tensor) -> _Table:
        """Return the table of weights, given by output and input (int32); chunk and offset by input."""
        chunk_of, offset_of = chunk_of.int(), offset_of.int()
        n, chunks = len(output), int(chunk_of[-1]) + 1
        order, offsets = torch.empty(n, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
        starts = torch.empty(chunks, outs + 1, dtype=torch.int32)
        sources = [tensor.contiguous() for tensor in (output, input_, chunk_of, offset_of)]
        self._library.dst_sort(*map(at, sources), long(n), chunks, outs, *map(at, (order, offsets, starts)))
        return _Table(order, offsets, starts)

    # -- passes --------------------------------------------------------------------------------------------------------

    def forward(self, values: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> None:
        """Write the outputs of tiled inputs ``x`` into ``y``, channels-last."""
        self._multiply(values, self._forward, x, layout(self.shape, len(x)).outputs, y, bias)

    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Write the gradients of inputs into ``dx``, channels-last, from tiled gradients of outputs ``dy``."""
        classes = layout(self.shape, len(dy)).classes
        for positions, table in zip(classes, self._backward, strict=True):
            own = gathered(self._library, values, table.order, _gathered.room(len(table.order)))
            self._multiply(own, table, dy, positions, dx)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradients of the weights, from tiled inputs and tiled gradients of outputs."""
        table, tile = self._forward, self.shape.gradient_tile
        found = torch.empty(len(self.places), dtype=torch.float32)
        ranges = min(threads(), max(1, table.outs // 4))
        sets = min(table.chunks, -(-threads() // ranges))
        (cuts, _), plane, span = self._cuts(table, ranges, 1), prod(tile[1:]), max(1, _SPAN // table.outs)
        for adds, place in enumerate(layout(self.shape, len(x)).gradients):
            inside, out = (at(x), at(place.inside), at(place.in_steps)), (at(place.out), at(place.out_steps))
            work = long(len(place.out)), long(span), at(found), at(table.offsets), at(table.starts), table.chunks
            self._library.dst_gradients(
                *(place.group, int(adds > 0), *inside, at(dy), long(plane), *out, *work),
                *(table.outs, sets, at(cuts), ranges, threads()),
            )
        return found

    def _multiply(
        self,
        values: Tensor,
        table: _Table,
        x: Tensor,
        positions: list[Positions],
        y: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        for place in positions:
            ranges = max(-(-table.outs // _MOST_OUTPUTS), _ranges(len(place.out), table.outs))
            cuts, widest = self._cuts(table, ranges, 16)
            room = place.group * SAMPLES * widest
            inside, out = (at(x), at(place.inside), at(place.in_steps)), (at(y), at(place.out), at(place.out_steps))
            weights = (
                at(bias),
                at(values),
                at(table.offsets),
                at(table.starts),
                table.chunks,
                table.outs,
            )
            self._library.dst_multiply(
                *(place.group, *inside, *out, long(len(place.out)), long(len(y)), long(y[0].numel()), *weights),
                *(at(cuts), ranges, at(_outputs.room(threads() * room)), long(room), threads()),
            )

    def _cuts(self, table: _Table, ranges: int, whole: int) -> tuple[Tensor, int]:
        """Return where to cut the outputs of a table, and how many the largest range has."""
        key = id(table), ranges, whole
        if key not in self._known:
            cuts = table.cuts(ranges, whole)
            self._known[key] = cuts, int(cuts.diff().amax())
        return self._known[key]


_gathered, _outputs = Scratch(), Scratch()


def gathered(library: ctypes.CDLL, numbers: Tensor, order: Tensor, room: Tensor | None = None) -> Tensor:
    """Return some of float32 numbers that lie in a row; ``order``: int32, which ones; ``room``: where they may lie."""
    found = torch.empty(len(order), dtype=torch.float32) if room is None else room
    library.dst_permute(at(numbers), at(found), at(order), long(len(order)), threads_for(len(order)))
    return found


def spread(library: ctypes.CDLL, numbers: Tensor, order: Tensor, to: Tensor) -> None:
    """Write float32 numbers into places of a row; ``order``: int32, into which ones, each once."""
    library.dst_spread(at(numbers), at(to), at(order), long(len(order)), threads_for(len(order)))


def _ranges(items: int, outs: int) -> int:
    """Return into how many ranges to cut outputs, so that all threads have work; at least eight outputs each."""
    return max(1, min(-(-4 * threads() // items), outs // 8))
