"""What training needs of data: one interface to batches that live on the device and to batches that are streamed."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from dst.data.batches import Batches
from dst.data.dataset import Samples, Split
from dst.data.files import Files
from dst.data.stream import Stream


class Loader(Protocol):
    """Batches of a split, each a pure function of (seed, phase, epoch, sample). ``len``: batches of an epoch."""

    samples: int
    """Number of samples of an epoch."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, phase: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images float32 [B, C, H, W], labels int64 [B]) from the batch of index ``start`` on."""
        ...


def loader(samples: Samples, *, workers: int = 0, **options: Any) -> Loader:
    """Return the batches of a split: resident if its images are in memory, else streamed by ``workers`` processes.

    ``options``: those of ``Batches`` and ``Stream``.
    """
    if isinstance(samples, Files):
        return Stream(samples, workers=workers, **options)
    assert isinstance(samples, Split)
    return Batches(samples, **options)
