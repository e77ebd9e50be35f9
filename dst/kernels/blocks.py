"""Products with weights of which rows share their columns (see ``blocks.c``): found in a mask, and the three passes."""

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dst.kernels.calls import at, long, threads
from dst.kernels.shape import BLOCK, SAMPLES, Shape
from dst.kernels.tiled import Scratch, Tiled, offset

OCTET: Final = 8
"""Rows that are computed together: groups have multiples of them."""

_FEW: Final = 128
"""Columns of which equal rows are told from others at first."""

_SPAN: Final = 16
"""SPAN in ``blocks.c``: positions that a gradient of a weight sums in registers."""

_STRIP: Final = 8
"""STRIP in ``blocks.c``."""

_TOGETHER: Final = 2
"""TOGETHER in ``blocks.c``."""

_RING: Final = 2**17
"""Numbers of a ring of gradients of inputs that should stay in the cache while all octets meet them."""

_MET: Final = 2**18
"""Numbers of inputs that should stay in the cache while all octets meet them, in gradients of weights."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows of a mask that are equal. ``rows``: int32, all of them, group by group; ``sizes``: int64, of the groups."""

    rows: Tensor
    sizes: Tensor


def alike(mask: Tensor) -> Groups | None:
    """Return the groups of equal rows of a mask, by their first rows; None if a size is no multiple of 8.

    ``mask``: boolean, [outs, ...]. None too if there is nothing to multiply. Most other masks are recognised by a few
    columns of theirs.
    """
    rows = mask.reshape(len(mask), -1)
    if len(rows) % OCTET or (rows[:, :_FEW] == rows[0, :_FEW]).all(1).count_nonzero() < OCTET:
        return None
    if not rows.any():
        return None
    group = first_equal(rows)
    sizes = torch.bincount(group)
    if (sizes % OCTET).any():
        return None
    return Groups(torch.argsort(group, stable=True).int(), sizes[sizes > 0])


def first_equal(rows: Tensor) -> Tensor:
    """Return of each row of a mask [rows, columns] the first row that equals it; int64, on the CPU."""
    bits = np.packbits(rows.cpu().numpy(), axis=1)
    words = np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1])))[:, 0]
    _, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    return torch.from_numpy(first[inverse.reshape(-1)])


class Blocks(Tiled):
    """The products with the weights of a mask of which rows are alike: boolean, [outs, channels(, height, width)].

    Values lie group by group, and octet by octet of its rows: eight for each column, one column after the other.
    """

    def __init__(self, library: ctypes.CDLL, shape: Shape, mask: Tensor, groups: Groups) -> None:
        super().__init__(library, shape)
        self._rows, blocks = groups.rows, shape.input_tile[0]
        group, column = self._columns(mask, groups)
        self.places, self._before, group_of = self._octets(group, column, groups.sizes // OCTET)
        self._group, self._at = group_of.int(), self._before[:-1] * OCTET
        channel, tap = column // shape.taps, column % shape.taps
        in_block = torch.bincount(group * blocks + channel // BLOCK, minlength=len(groups.sizes) * blocks)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), in_block.cumsum(0)])
        self._bounds = torch.cat([ends[:-1:blocks, None], ends[1:].view(-1, blocks)], 1).int()
        down, right = tap // shape.kernel[1], tap % shape.kernel[1]
        self._offsets = offset(shape.input_tile, channel, down * shape.input_tile[2] + right).int()
        self._ring = max(shape.kernel[0], shape.stride[0])
        ring = blocks, self._ring, *shape.input_tile[2:]
        row = (down + torch.arange(self._ring)[:, None]) % self._ring
        self._ring_offsets = offset(ring, channel, row * ring[2] + right).int()
        top, _, left, _ = shape.border
        self._layer = torch.tensor(
            [
                *(shape.channels, shape.outs, shape.height, shape.width, *shape.out, *shape.kernel, *shape.stride),
                *(*shape.padding, *shape.gradient_tile[1:3], top, left),
            ]
        )
        tables = self._rows, self._group, self._at, self._bounds, self._offsets
        self._table = torch.tensor([*(table.data_ptr() for table in tables), len(self._at), blocks])
        self._known: dict[int, Tensor] = {}

    # -- tables --------------------------------------------------------------------------------------------------------

    def _columns(self, mask: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """Return all columns of all groups, int64: their group and their place in a row of the mask, in order."""
        shape, blocks = self.shape, self.shape.input_tile[0]
        first = groups.rows[groups.sizes.cumsum(0) - groups.sizes].long()
        taps = mask.reshape(shape.outs, shape.channels, shape.taps)[first]
        filled = torch.nn.functional.pad(taps, (0, 0, 0, blocks * BLOCK - shape.channels))
        found = filled.view(-1, blocks, BLOCK, shape.taps).transpose(2, 3).nonzero()
        group, block, tap, channel = found.unbind(1)
        return group, (block * BLOCK + channel) * shape.taps + tap

    def _octets(self, group: Tensor, column: Tensor, octets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the places of all values; how many columns come before each octet, and in all; and its group.

        ``octets``: how many a group has.
        """
        counts = torch.bincount(group, minlength=len(octets))
        group_of = torch.repeat_interleave(octets)
        own = counts[group_of]
        before = torch.cat([torch.zeros(1, dtype=torch.int64), own.cumsum(0)])
        skipped = (counts.cumsum(0) - counts)[group_of] - before[:-1]  # the n-th column of an octet is its group's n-th
        which = torch.arange(int(before[-1])) + torch.repeat_interleave(skipped, own)
        rows = self._rows.view(-1, OCTET).long().repeat_interleave(own, 0)
        return rows.mul_(self.shape.channels * self.shape.taps).add_(column[which, None]).flatten(), before, group_of

    def _cuts(self, ranges: int) -> Tensor:
        """Return where to cut the octets, so that all ranges have about as many columns."""
        if ranges not in self._known:
            marks = torch.arange(1, ranges) * (float(self._before[-1]) / ranges)
            inner = torch.searchsorted(self._before.double(), marks.double())
            self._known[ranges] = torch.cat([torch.tensor([0]), inner, torch.tensor([len(self._at)])]).int()
        return self._known[ranges]

    # -- passes --------------------------------------------------------------------------------------------------------

    def forward(self, values: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> None:
        """Write the outputs of tiled inputs ``x`` into ``y``, channels-last."""
        positions = len(x) * prod(self.shape.out)
        ranges = 1 if positions >= 4 * threads() or threads() == 1 else self._shares(positions)
        room = (threads() if ranges == 1 else positions) * SAMPLES * self.shape.outs
        self._library.dst_blocks_forward(
            *(at(self._layer), at(self._table), at(x), at(y), long(len(y)), at(bias), at(values)),
            *(at(self._cuts(ranges)), long(ranges), at(_scratch.room(room)), threads()),
        )

    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Write the gradients of inputs into ``dx``, channels-last, from tiled gradients of outputs ``dy``."""
        blocks = self.shape.input_tile[0]
        block = self._ring * prod(self.shape.input_tile[2:])
        ranges = min(blocks, max(-(-blocks * block // _RING), -(-threads() // len(dy))))
        room = -(-blocks // ranges) * block
        self._library.dst_blocks_inputs(
            *(at(self._layer), at(self._table), at(dy), at(dx), long(len(dx)), at(values), at(self._ring_offsets)),
            *(long(len(self._offsets)), long(self._ring), long(ranges)),
            *(at(_scratch.room(threads() * room)), long(room), threads()),
        )

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradients of the values, from tiled inputs and tiled gradients of outputs."""
        found, blocks = torch.empty(len(self.places), dtype=torch.float32), self.shape.input_tile[0]
        sets = min(blocks, -(-self._met(len(x)) * blocks * BLOCK * SAMPLES // _MET))
        ranges = 1 if sets >= threads() else self._shares(sets)
        self._library.dst_blocks_weights(
            *(at(self._layer), at(self._table), at(x), at(dy), long(len(x) * SAMPLES), at(found), long(sets)),
            *(at(self._cuts(ranges)), long(ranges)),
            *(at(_scratch.room(threads() * _SPAN * _TOGETHER * OCTET * SAMPLES)), threads()),
        )
        return found

    def _met(self, tiles: int) -> int:
        """Return about how many places of a block the outputs of a span meet: some rows of a strip, of some tiles."""
        shape = self.shape
        wide = min(_STRIP, shape.out[1])
        high = min(-(-_SPAN // wide), shape.out[0])
        met = prod(
            kernel + stride * (size - 1)
            for kernel, stride, size in zip(shape.kernel, shape.stride, (high, wide), strict=True)
        )
        return met * min(tiles, -(-_SPAN // (wide * high)))

    def _shares(self, items: int) -> int:
        """Return into how many ranges to cut octets, so that all threads have work."""
        return max(1, min(-(-2 * threads() // items), len(self._at)))


_scratch = Scratch()
