"""The data that training sees: one interface to batches on the device and to batches that are streamed."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from dst.data.batches import Batches, VectorBatches
from dst.data.dataset import Samples, Split, Vectors
from dst.data.files import Files
from dst.data.shard import WHOLE, Shard
from dst.data.stream import Stream


class Loader(Protocol):
    """Batches of a split, each a pure function of (seed, phase, epoch, sample). ``len``: batches of an epoch."""

    samples: int
    """Number of samples of an epoch."""
    batch_size: int
    """Number of samples of every batch but the last, which may have fewer."""

    def __len__(self) -> int: ...

    def epoch(
        self, epoch: int, phase: int = 0, start: int = 0, shard: Shard = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (samples float32 [B, C, H, W] or [B, F], labels int64 [B]) from the batch of index ``start`` on.

        Only a ``shard`` of each batch is made; where that is empty, nothing is yielded.
        """
        ...


def samples_of(batches: Loader, index: int) -> int:
    """Return the number of samples of a batch, all shards together."""
    return min(batches.batch_size, batches.samples - index * batches.batch_size)


def samples_within(batches: Loader, steps: int) -> int:
    """Return the number of samples of the first ``steps`` batches, epoch after epoch."""
    epochs, rest = divmod(steps, len(batches))
    return epochs * batches.samples + rest * batches.batch_size  # only the last batch of an epoch may be smaller


def loader(samples: Samples, *, workers: int = 0, **options: Any) -> Loader:
    """Return the batches of a split: resident if it is in memory, else streamed by ``workers`` processes.

    ``options``: see ``Epochs``; and ``mean`` and ``std`` of images.
    """
    if isinstance(samples, Files):
        return Stream(samples, workers=workers, **options)
    if isinstance(samples, Vectors):
        return VectorBatches(samples, **options)
    assert isinstance(samples, Split)
    return Batches(samples, **options)
