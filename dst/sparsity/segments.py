"""All layers of a network as rows of one matrix, so that one kernel on a GPU serves them all.

Nothing here waits for the device. Integer sums are exact in any order, so results are equal on repetition.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

COLUMNS: Final = 4_096
_MOST: Final = 2**25
"""Weights in one matrix; more would only take more memory at once, not less time."""
_FEW: Final = 4
"""Candidates are few if they are at most one of so many: then they are gathered, and looked at by more bits a pass."""


def batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield runs of layers of these sizes that go into one matrix each."""
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > _MOST:
            yield slice(start, i)
            start, held = i, 0
        held += size
    yield slice(start, len(sizes))


@lru_cache(maxsize=32)
def segments_of(sizes: tuple[int, ...], device: torch.device) -> "Segments":
    """Return the segments of layers of these sizes; an update needs the same ones as that before it."""
    return Segments(sizes, device)


class Segments:
    """Layers of these sizes as a matrix [rows, ``COLUMNS``]: each layer, flat, begins a row of its own.

    What is left of its last row is padding, and so is one more row at the end.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.device = device
        rows = [max(1, -(-size // COLUMNS)) for size in sizes]
        self._rows = sum(rows)
        self._lengths = [part for n, size in zip(rows, sizes, strict=True) for part in (size, n * COLUMNS - size)]
        firsts = np.cumsum([0, *rows[:-1]])
        table = np.arange(max(rows)) + firsts[:, None]
        beyond = np.arange(max(rows)) >= np.array(rows)[:, None]
        self._number = len(rows)
        self._rows_of = self.sent(np.where(beyond, self._rows, table).reshape(-1))
        """The rows of each segment, then those of padding: [segments * most rows]."""
        self._segment_of = self.sent(np.append(np.repeat(np.arange(len(rows)), rows), 0))
        """The segment of each row; that of the last one does not matter."""
        self._firsts = self.sent(firsts)
        filled = [min(COLUMNS, size - start) for size in sizes for start in range(0, max(1, size), COLUMNS)]
        self._filled = self.sent([*filled, 0])
        """How much of each row is no padding."""

    # -- there and back ------------------------------------------------------------------------------------------------

    def sent(self, numbers: "np.ndarray | Sequence[int]") -> Tensor:
        """Return integers on the device, which need not be waited for."""
        here = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        return (here.pin_memory() if self.device.type == "cuda" else here).to(self.device, non_blocking=True)

    def gathered(self, tensors: Sequence[Tensor], dtype: torch.dtype, padding: float = 0) -> Tensor:
        """Return the matrix of these tensors, one a layer."""
        matrix = torch.full((self._rows + 1, COLUMNS), padding, dtype=dtype, device=self.device)
        torch._foreach_copy_(self._parts(matrix), [tensor.flatten() for tensor in tensors])
        return matrix

    def spread(self, matrix: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Return what the matrix has of each layer, in its shape and in memory of its own."""
        made = [torch.empty(tensor.shape, dtype=matrix.dtype, device=self.device) for tensor in like]
        torch._foreach_copy_([tensor.view(-1) for tensor in made], self._parts(matrix))
        return made

    def everywhere(self) -> Tensor:
        """Return a mask of all that is no padding."""
        return torch.arange(COLUMNS, device=self.device) < self._filled.unsqueeze(1)

    def _parts(self, matrix: Tensor) -> list[Tensor]:
        """Return views of the layers, flat."""
        return list(torch.split(matrix[: self._rows].view(-1), self._lengths)[::2])

    # -- counting ------------------------------------------------------------------------------------------------------

    def counts(self, mask: Tensor) -> Tensor:
        """Return how many true values each segment has [segments]."""
        return self._sums(mask.sum(1, keepdim=True)).squeeze(1)

    def _sums(self, of_rows: Tensor) -> Tensor:
        """Return the sums over the rows of each segment [segments, numbers] of numbers of rows [rows, numbers]."""
        return of_rows.index_select(0, self._rows_of).view(self._number, -1, of_rows.shape[1]).sum(1)

    def _of_rows(self, numbers: Tensor) -> Tensor:
        """Return, for each row, what its segment has."""
        return numbers.index_select(0, self._segment_of)

    # -- selection -----------------------------------------------------------------------------------------------------

    def best(
        self, values: Tensor, numbers: Sequence[int], among: Tensor, *, largest: bool, held: Sequence[int] | None = None
    ) -> Tensor:
        """Return a mask of the largest (or smallest) values of each segment within ``among``, ties by lowest position.

        ``numbers``: how many of each; a segment with fewer candidates gives all it has. ``held``: how many candidates
        each has, if the host knows: where these are few, only they are looked through. Overwrites ``values``.
        """
        wanted = self.sent(numbers)
        values = (values if largest else values.neg_()).masked_fill_(~among, -torch.inf)
        if held is None or _FEW * sum(held) > among.numel():
            last = self._ranked(values, wanted, nan_first=largest)
        else:
            few = segments_of(tuple(held), self.device)
            places = torch.nonzero_static(among.view(-1), size=sum(held), fill_value=0).squeeze(1)
            candidates = torch.split(values.view(-1).index_select(0, places), [*held])
            last = few._ranked(few.gathered(candidates, values.dtype, -torch.inf), wanted, nan_first=largest, width=4)
        return self._first(values, last, wanted, among)

    def single_best(self, values: Tensor, among: Tensor) -> Tensor:
        """Return a mask of the largest value of each segment; ``values`` are minus infinity outside ``among``."""
        of_rows = values.amax(1).index_select(0, self._rows_of).view(self._number, -1)
        return self._first(values, of_rows.amax(1), torch.ones_like(self._firsts), among)

    def _ranked(self, values: Tensor, wanted: Tensor, *, nan_first: bool, width: int = 2) -> Tensor:
        """Return the value of that rank in each segment: so many bits a pass, the highest first."""
        keys = _ordered(values, nan_first=nan_first)
        limits = torch.iinfo(keys.dtype)
        keys[-1] = limits.min  # the row that all segments share reaches no threshold
        digits = torch.arange(1 << width, dtype=keys.dtype, device=self.device)
        rank, highest = wanted.unsqueeze(1), limits.bits - width
        signed = (digits - (1 << width - 1)) * (1 << highest)  # the highest bit says which are negative
        known = signed.index_select(0, self._reached(keys, signed[1:].expand(self._number, -1), rank))
        for shift in range(highest - width, -1, -width):
            thresholds = torch.add(known.unsqueeze(1), digits[1:], alpha=1 << shift)
            known.add_(self._reached(keys, thresholds, rank), alpha=1 << shift)
        return _turned(known).view(values.dtype).masked_fill_(known == limits.min, -torch.inf)  # there are not as many

    def _reached(self, keys: Tensor, thresholds: Tensor, rank: Tensor) -> Tensor:
        """Return how many of the thresholds of each segment [segments, thresholds] at least ``rank`` keys reach."""
        reach = keys.unsqueeze(1) >= self._of_rows(thresholds).unsqueeze(2)
        return (self._sums(reach.sum(2)) >= rank).sum(1)

    def _first(self, values: Tensor, last: Tensor, wanted: Tensor, among: Tensor) -> Tensor:
        """Return a mask of the values above the ``last`` of each segment, and of the first ones equal to it."""
        limit = self._of_rows(last).unsqueeze(1)
        above, equal = values > limit, (values == limit).logical_and_(among)
        number = equal.sum(1)
        before = number.cumsum(0) - number  # of all segments, in the order of rows
        room = wanted - self.counts(above) + before.index_select(0, self._firsts)
        left = (self._of_rows(room) - before).to(torch.int32)
        return above.logical_or_(equal.logical_and_(equal.cumsum(1, dtype=torch.int32) <= left.unsqueeze(1)))


def _ordered(values: Tensor, *, nan_first: bool) -> Tensor:
    """Return integers in the order of the values, infinities included; what is no number is first or last."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    keys = _turned(bits)
    limits = torch.iinfo(keys.dtype)
    return keys.masked_fill_(values.isnan(), limits.max if nan_first else limits.min)


def _turned(bits: Tensor) -> Tensor:
    """Return the bits of floats as integers in their order, or these as bits: those of a negative one are inverted."""
    limits = torch.iinfo(bits.dtype)
    return (bits >> limits.bits - 1).bitwise_and_(limits.max).bitwise_xor_(bits)
