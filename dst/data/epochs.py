"""The batches of a split, epoch after epoch: what those of all kinds of samples have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dst.data.augment import Augment, Draws, draw
from dst.data.dataset import DataError, Samples
from dst.data.options import BatchSize
from dst.data.shard import WHOLE, Shard
from dst.options import checked


class Epochs(ABC):
    """Batches of a split on ``device``, in random order and augmented on request.

    Every batch is a pure function of (seed, phase, epoch, sample). ``DataError`` if ``augment`` does not fit the
    samples, ``OptionError`` for an impossible ``batch_size``.
    """

    @checked
    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: BatchSize,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
    ) -> None:
        self.samples = len(samples)
        """Number of samples of an epoch."""
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._augment = augment or Augment()
        self._augment.check(samples.shape)
        self._seed, self._shuffle = seed, shuffle

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(
        self, epoch: int, phase: int = 0, start: int = 0, shard: Shard = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (samples float32 [B, C, H, W] or [B, F], labels int64 [B]) from the batch of index ``start`` on.

        The last batch may be smaller. The augmentation of a sample does not depend on the batch it is in. Only a
        ``shard`` of each batch is made; where that is empty, nothing is yielded. ``DataError`` if an image file cannot
        be decoded.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"cannot start at batch {start}: an epoch has batches 0..{len(self) - 1}")
        draws = draw(self._augment, self.samples, self._seed, epoch, phase, shuffle=self._shuffle)
        return self._batches(draws, list(shard.slices(self.samples, self.batch_size, start)))

    @abstractmethod
    def _batches(self, draws: Draws, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches that consist of these parts of an epoch's ``draws``."""
