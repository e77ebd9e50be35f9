"""The samples of a batch that a process takes when several share it."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` parts of every batch. The parts are disjoint and cover the batch, in its order."""

    index: int = 0
    count: int = 1

    def of(self, batch: range) -> range:
        """Return this part of a batch; the sizes of the parts differ by one at most, larger ones first."""
        size, larger = divmod(len(batch), self.count)
        first = self.index * size + min(self.index, larger)
        return batch[first : first + size + (self.index < larger)]

    def slices(self, samples: int, batch_size: int, start: int = 0) -> Iterator[slice]:
        """Yield where in an epoch the parts of its batches lie, from batch ``start`` on; empty ones are left out."""
        for low in range(start * batch_size, samples, batch_size):
            part = self.of(range(low, min(low + batch_size, samples)))
            if part:
                yield slice(part.start, part.stop)


WHOLE = Shard()
"""All of every batch."""
