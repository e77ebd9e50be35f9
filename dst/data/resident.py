"""Batches of samples that are on the device: an epoch of them, and the same gathered from tensors that never move."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Columns = Mapping[str, Tensor]
"""What says where the samples of an epoch are, and how they are augmented: int64 [N], in the order of the samples."""

Take = Callable[[Columns], tuple[Tensor, Tensor]]
"""From the columns of a batch to its samples and labels."""


class ResidentEpoch(Iterator[tuple[Tensor, Tensor]]):
    """The batches of an epoch, each made when it is asked for.

    ``columns``: of the epoch; ``parts``: of each batch; ``resident``: all else that ``take`` reads.
    """

    def __init__(self, take: Take, columns: Columns, parts: Sequence[slice], resident: Sequence[Tensor]) -> None:
        self.take, self.columns, self.resident = take, columns, resident
        self._parts, self._taken = parts, 0

    @property
    def left(self) -> int:
        """How many batches are left."""
        return len(self._parts) - self._taken

    @property
    def next_part(self) -> slice:
        """Where in the epoch the samples of the next batch are."""
        return self._parts[self._taken]

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self.left:
            raise StopIteration
        part = self.next_part
        self.skip()
        return self.take({name: column[part] for name, column in self.columns.items()})

    def skip(self) -> None:
        """Leave out the next batch, which something else makes."""
        self._taken += 1


class FixedBatches:
    """Batches of one size, gathered on the device by work that reads nothing from the host.

    All that it reads stays where it is (``tensors``), so that the work can be captured and replayed: ``begin`` and
    ``point`` write there which epoch and which batch it is. ``epoch``: any of the loader's; ``size``: of every batch.
    """

    def __init__(self, epoch: ResidentEpoch, size: int) -> None:
        self.size = size
        self._take = epoch.take
        self._columns = {name: torch.empty_like(column) for name, column in epoch.columns.items()}
        device = next(iter(self._columns.values())).device
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        """Where in the epoch the present batch begins."""
        self._within = torch.arange(size, device=device)
        self.tensors = [*self._columns.values(), self._first, self._within, *epoch.resident]
        """All that is read."""

    def begin(self, epoch: ResidentEpoch) -> None:
        """Go on to the batches of an epoch."""
        for name, column in self._columns.items():
            column.copy_(epoch.columns[name])

    def point(self, first: int) -> None:
        """Say where in the epoch the batch begins that is gathered next."""
        self._first.fill_(first)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Return the samples and the labels of the present batch."""
        where = self._first + self._within
        return self._take({name: column.index_select(0, where) for name, column in self._columns.items()})

    @property
    def number(self) -> Tensor:
        """The number of the present batch, counted from 0, int64 [1]."""
        return (self._first // self.size).view(1)
