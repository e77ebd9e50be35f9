"""Batches of a small data set that lives on the device: no workers, no copies, no loop over samples.

All of it is a pure function of (seed, phase, epoch, sample), so that a resume needs counters only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dst.data.dataset import DataError, Split
from dst.seeding import derive_seed


@dataclass(frozen=True)
class Augment:
    """Random crop after padding by ``crop_padding`` pixels, then horizontal flip with probability one half.

    ``padding_mode``: ``reflect``, or ``zeros`` (black pixels, before normalisation).
    """

    crop_padding: int = 0
    padding_mode: str = "reflect"
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise DataError(f"data.augment.crop_padding={self.crop_padding}: must be a number of pixels >= 0")
        if self.padding_mode not in ("reflect", "zeros"):
            raise DataError(f"data.augment.padding_mode={self.padding_mode}: allowed: reflect, zeros")


class Batches:
    """A split as normalised batches on ``device``, in random order and augmented on request.

    ``mean`` and ``std`` (one number a channel, of pixels scaled to [0, 1]) default to those of ``split`` itself; give
    a validation or test split those of the training split. ``DataError`` if they or ``augment`` do not fit the images.
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
            raise DataError(f"schedule.batch_size={batch_size}: must be at least 1")
        self.samples = len(split)
        """Number of samples of an epoch."""
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._augment = augment or Augment()
        self._seed, self._shuffle = seed, shuffle
        self._mean, self._std = (values.to(self.device) for values in _normalisation(split, mean, std))
        self._shape = split.images.shape[1:]
        self._labels = split.labels.to(self.device)
        pixels = _padded(split.images.to(self.device), self._augment).contiguous()
        self._strides = pixels.stride()
        self._windows = _windows(pixels, self._shape)

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, epoch: int, phase: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images float32 [B, C, H, W], labels int64 [B]) from the batch of index ``start`` on.

        The last batch may be smaller. The augmentation of a sample does not depend on the batch it is in.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"cannot start at batch {start}: an epoch has batches 0..{len(self) - 1}")
        return self._epoch(epoch, phase, start)

    def _epoch(self, epoch: int, phase: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch, phase)
        position = (order * self._strides[0] + self._offsets(epoch, phase)[order]).to(self.device)
        flipped = self._flips(epoch, phase)[order].to(self.device) if self._augment.flip else None
        order = order.to(self.device)
        for low in range(start * self.batch_size, self.samples, self.batch_size):
            batch = slice(low, low + self.batch_size)
            images = self._crop(position[batch])
            if flipped is not None:
                images = _flip(images, flipped[batch])
            # Four operations where two would do: in this order they equal (x / 255 - mean) / std to the last bit.
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
            yield images.div_(255).sub_(self._mean).div_(self._std), self._labels.index_select(0, order[batch])

    def _order(self, epoch: int, phase: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(self.samples)
        return torch.randperm(self.samples, generator=self._generator("order", epoch, phase))

    def _offsets(self, epoch: int, phase: int) -> Tensor:
        """Where in its padded image the crop of each sample begins."""
        if self._augment.crop_padding == 0:
            return torch.zeros(self.samples, dtype=torch.int64)
        places = 2 * self._augment.crop_padding + 1
        rows, columns = torch.randint(places, (2, self.samples), generator=self._generator("crop", epoch, phase))
        offsets: Tensor = rows * self._strides[2] + columns
        return offsets

    def _flips(self, epoch: int, phase: int) -> Tensor:
        """1 for each sample that is flipped, else 0."""
        return torch.randint(2, (self.samples,), generator=self._generator("flip", epoch, phase))

    def _generator(self, use: str, epoch: int, phase: int) -> torch.Generator:
        """On the CPU whatever the device is, so that both see the same batches."""
        return torch.Generator().manual_seed(derive_seed(self._seed, use, phase, epoch))

    def _crop(self, position: Tensor) -> Tensor:
        """Return the images (uint8 [B, C, H, W], not contiguous) whose crops begin at ``position``."""
        runs = self._windows.index_select(0, position)
        return runs.as_strided((len(runs), *self._shape), (runs.shape[1], *self._strides[1:]))


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of pixels scaled to [0, 1].

    From integer histograms: exact, and the same for any number of threads.
    """
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in split.images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        centre = float((share * values).sum())
        mean.append(centre)
        std.append(float((share * (values - centre) ** 2).sum().sqrt()))
    return mean, std


def _normalisation(split: Split, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as float32 [C, 1, 1]."""
    if (mean is None) != (std is None):
        raise DataError("data.mean and data.std go together: set both, or neither to use those of the training split")
    if mean is None or std is None:
        mean, std = channel_statistics(split)
    for key, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != split.images.shape[1]:
            raise DataError(
                f"{key}={list(values)} has {len(values)} numbers, but the images have {split.images.shape[1]} "
                "channels: give one number a channel"
            )
    if not all(value > 0 for value in std):
        raise DataError(
            f"data.std={list(std)}: must be positive; where it was computed, a channel is constant: set data.mean and "
            "data.std"
        )
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return shift, scale


def _padded(images: Tensor, augment: Augment) -> Tensor:
    padding = augment.crop_padding
    if padding == 0:
        return images
    if augment.padding_mode == "zeros":
        return functional.pad(images, (padding,) * 4)
    height, width = images.shape[2:]
    if padding >= min(height, width):
        raise DataError(
            f"data.augment.crop_padding={padding}: reflection needs less than the image size, {height} x {width}; "
            "or set data.augment.padding_mode=zeros"
        )
    rows, columns = (_reflected(size, padding).to(images.device) for size in (height, width))
    return images.index_select(2, rows).index_select(3, columns)  # torch's own reflection does not take uint8


def _reflected(size: int, padding: int) -> Tensor:
    """Indices of a row of ``size`` pixels with ``padding`` mirrored ones on both sides."""
    last = size - 1
    return last - (last - torch.arange(-padding, size + padding).abs()).abs()


def _windows(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """View contiguous images [N, C, H', W'] as overlapping runs [offset, length of a crop in memory].

    A crop of C x H x W out of a padded image lies within one run of memory, from its first pixel to its last. To select
    runs is one plain copy a sample, about 5 times faster on a CPU than to index rows and columns; what a run holds
    beside the crop is skipped by the strides with which it is read.
    """
    _, channel, row, _ = pixels.stride()
    run = (shape[0] - 1) * channel + (shape[1] - 1) * row + shape[2]
    return pixels.as_strided((pixels.numel() - run + 1, run), (1, 1))


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Flip the images where ``flipped`` is 1: out of both versions, select one (half the time of ``torch.where``)."""
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + flipped * len(images))
