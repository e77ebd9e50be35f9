"""Batches of a small data set that lives on the device: no workers, no copies, no loop over samples."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dst.data.augment import Augment, Crops, draw
from dst.data.dataset import DataError, Split
from dst.data.normalise import Normalise, channel_statistics
from dst.data.shard import WHOLE, Shard


class Batches:
    """A split as normalised batches on ``device``, in random order and augmented on request.

    ``mean`` and ``std`` (one number a channel, of pixels scaled to [0, 1]) default to those of ``split`` itself; give
    a validation or test split those of the training split. ``DataError`` if they or ``augment`` do not fit the images.
    The images move to the device when the first epoch begins.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: must be at least 1")
        if (mean is None) != (std is None):
            raise DataError(
                f"mean={mean} and std={std} go together: give both, or neither to use those of the training split"
            )
        if mean is None or std is None:
            mean, std = channel_statistics(split)
        self.samples = len(split)
        """Number of samples of an epoch."""
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._split, self._augment = split, augment or Augment()
        self._seed, self._shuffle = seed, shuffle
        self._normalise = Normalise(mean, std, split.shape[0], self.device)
        self._augment.check(split.shape)
        if self._augment.resized_crop_scale is not None:
            raise DataError(
                f"resized_crop_scale={list(self._augment.resized_crop_scale)} crops images at their full size, so it "
                "needs image files that are streamed: choose resized_crop_scale=None, with crop_padding=4 or such if "
                "you want crops, or another data set"
            )

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(
        self, epoch: int, phase: int = 0, start: int = 0, shard: Shard = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images float32 [B, C, H, W], labels int64 [B]) from the batch of index ``start`` on.

        The last batch may be smaller. The augmentation of a sample does not depend on the batch it is in. Of each batch
        only a ``shard`` is made; where that is empty, nothing is yielded.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"cannot start at batch {start}: an epoch has batches 0..{len(self) - 1}")
        return self._epoch(epoch, phase, start, shard)

    def _epoch(self, epoch: int, phase: int, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        draws = draw(self._augment, self.samples, self._seed, epoch, phase, shuffle=self._shuffle)
        positions = self._crops.positions(draws.order, draws).to(self.device)
        order = draws.order.to(self.device)
        flips = None if draws.flips is None else draws.flips.to(self.device)
        for batch in shard.slices(self.samples, self.batch_size, start):
            images = self._crops.take(positions[batch], None if flips is None else flips[batch])
            yield self._normalise(images), self._labels.index_select(0, order[batch])

    @cached_property
    def _labels(self) -> Tensor:
        return self._split.labels.to(self.device)

    @cached_property
    def _crops(self) -> Crops:
        return Crops(self._split.images.to(self.device), self._augment)
