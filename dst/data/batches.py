"""Batches of a small data set that lives on the device: no workers, no copies, no loop over samples."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from dst.data.augment import Crops, Draws
from dst.data.dataset import DataError, Split
from dst.data.epochs import Epochs
from dst.data.normalise import channel_statistics


class Batches(Epochs):
    """A split in memory as batches. ``mean`` and ``std`` default to those of ``split`` itself.

    ``options``: see ``Epochs``. The images move to the device when the first epoch begins.
    """

    def __init__(
        self, split: Split, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **options: Any
    ) -> None:
        if (mean is None) != (std is None):
            raise DataError(
                f"mean={mean} and std={std} go together: give both, or neither to use those of the training split"
            )
        if mean is None or std is None:
            mean, std = channel_statistics(split)
        super().__init__(split, mean=mean, std=std, **options)
        self._split = split
        if self._augment.resized_crop_scale is not None:
            raise DataError(
                f"resized_crop_scale={list(self._augment.resized_crop_scale)} crops images at their full size, so it "
                "needs image files that are streamed: choose resized_crop_scale=None, with crop_padding=4 or such if "
                "you want crops, or another data set"
            )

    def _batches(self, draws: Draws, parts: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches; their images are selected on the device."""
        positions = self._crops.positions(draws.order, draws).to(self.device)
        order = draws.order.to(self.device)
        flips = None if draws.flips is None else draws.flips.to(self.device)
        for batch in parts:
            images = self._crops.take(positions[batch], None if flips is None else flips[batch])
            yield self._normalise(images), self._labels.index_select(0, order[batch])

    @cached_property
    def _labels(self) -> Tensor:
        return self._split.labels.to(self.device)

    @cached_property
    def _crops(self) -> Crops:
        return Crops(self._split.images.to(self.device), self._augment)
