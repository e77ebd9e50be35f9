"""Batches of a small data set that lives on the device: no workers, no copies, no loop over samples."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from dst.data.augment import Crops, Draws
from dst.data.dataset import DataError, Split, Vectors
from dst.data.epochs import Epochs
from dst.data.normalise import Normalise, channel_statistics
from dst.data.resident import Columns, ResidentEpoch


class Batches(Epochs):
    """Images in memory as normalised batches. ``mean`` and ``std`` default to those of ``split`` itself.

    They have one number a channel, of pixels scaled to [0, 1]; give a validation or test split those of the training
    split. ``options``: see ``Epochs``. The images move to the device when the first epoch begins.
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
        super().__init__(split, **options)
        self._normalise = Normalise(mean, std, split.shape[0], self.device)
        self._split = split
        if self._augment.resized_crop_scale is not None:
            raise DataError(
                f"resized_crop_scale={list(self._augment.resized_crop_scale)} crops images at their full size, so it "
                "needs image files that are streamed: choose resized_crop_scale=None, with crop_padding=4 or such if "
                "you want crops, or another data set"
            )

    def _batches(self, draws: Draws, parts: Sequence[slice]) -> ResidentEpoch:
        """Return the batches; their images are selected on the device."""
        columns = {"positions": self._crops.positions(draws.order, draws), "order": draws.order}
        if draws.flips is not None:
            columns["flips"] = draws.flips
        there = {name: column.to(self.device) for name, column in columns.items()}
        resident = [self._crops.pixels, self._labels, *self._normalise.tensors]
        return ResidentEpoch(self._take, there, parts, resident)

    def _take(self, columns: Columns) -> tuple[Tensor, Tensor]:
        """Return the samples and labels of a batch."""
        images = self._crops.take(columns["positions"], columns.get("flips"))
        return self._normalise(images), self._labels.index_select(0, columns["order"])

    @cached_property
    def _labels(self) -> Tensor:
        return self._split.labels.to(self.device)

    @cached_property
    def _crops(self) -> Crops:
        return Crops(self._split.images.to(self.device), self._augment)


class VectorBatches(Epochs):
    """Vectors as batches; they move to the device when the first epoch begins. ``options``: see ``Epochs``."""

    def __init__(
        self,
        vectors: Vectors,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        if mean is not None or std is not None:
            raise DataError(
                f"mean={mean} and std={std} are those of images; the numbers of a table are standardised column by "
                "column on the training split: leave both out"
            )
        super().__init__(vectors, **options)
        self._vectors = vectors

    def _batches(self, draws: Draws, parts: Sequence[slice]) -> ResidentEpoch:
        """Return the batches, selected on the device."""
        there = {"order": draws.order.to(self.device)}
        return ResidentEpoch(self._take, there, parts, [self._values, self._labels])

    def _take(self, columns: Columns) -> tuple[Tensor, Tensor]:
        """Return the samples and labels of a batch."""
        return self._values.index_select(0, columns["order"]), self._labels.index_select(0, columns["order"])

    @cached_property
    def _values(self) -> Tensor:
        return self._vectors.values.to(self.device)

    @cached_property
    def _labels(self) -> Tensor:
        return self._vectors.labels.to(self.device)
