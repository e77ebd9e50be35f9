"""Units of adjacent input channels that groups of rows have in common, found in a mask."""

from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Final

import torch
from torch import Tensor

from dst.kernels.blocks import first_equal

UNIT: Final = 16
"""Adjacent input channels of a unit, at one tap of the kernel."""

BLOCKS: Final = (128, 64, 32)
"""Rows of a group."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a layer's weight, by groups of rows (outputs); all tensors are int64.

    ``shape``: that of the weight; ``block``: rows of a group; ``rows``: [outs], group by group, ascending in each.
    ``group``, ``tap``, ``chunk``: [units], which group has a unit, and which tap and which 16 channels it takes; units
    are in this order, and have 16 x ``block`` weights, those of a channel one after the other. ``starts``:
    [groups + 1], where the units of each group begin.
    """

    shape: torch.Size
    block: int
    rows: Tensor
    group: Tensor
    tap: Tensor
    chunk: Tensor
    starts: Tensor

    @property
    def places(self) -> Tensor:
        """The flat positions of the weights in the layer's weight, in the order of values; int64."""
        channels, taps = self.shape[1], self.shape[2:].numel()
        row = self.rows.view(-1, 1, self.block)[self.group]
        channel = (self.chunk[:, None] * UNIT + torch.arange(UNIT))[:, :, None]
        return ((row * channels + channel) * taps + self.tap[:, None, None]).flatten()


def units_of(mask: Tensor, block: int | None = None) -> Units:
    """Return the units of a mask, looked at on the CPU, and its groups, in the order of their first rows.

    ``mask``: boolean, [outs, channels, height, width of the kernel] or [outs, channels]. ``block``: rows of a group;
    the largest of ``BLOCKS`` that the mask allows if not given. Equal rows beyond a group's are the next group. Raises
    ValueError if active weights are not whole units, or equal rows not whole groups.
    """
    outs, channels, taps = mask.shape[0], mask.shape[1], mask.shape[2:].numel()
    if channels % UNIT:
        raise ValueError(f"{channels} input channels are not divisible by {UNIT}")
    weights = mask.reshape(outs, channels // UNIT, UNIT, taps)
    has_unit = weights.any(2)
    if not torch.equal(has_unit, weights.all(2)):
        raise ValueError(f"active weights are not whole units of {UNIT} adjacent input channels")
    has_unit = has_unit.cpu()
    kind = first_equal(has_unit.flatten(1))
    sizes = kind.bincount()
    if block is None:
        common = reduce(gcd, sizes.tolist())
        block = next((block for block in BLOCKS if common % block == 0), BLOCKS[-1])
    if bool((sizes % block).any()):
        raise ValueError(f"{outs} rows are not groups of {block} with equal units")
    rows = kind.argsort(stable=True)
    group, tap, chunk = has_unit[rows[::block]].transpose(1, 2).nonzero().unbind(1)
    counts = group.bincount(minlength=outs // block)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Units(mask.shape, block, rows, group, tap, chunk, starts)
