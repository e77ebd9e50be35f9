"""Augmentation: which random numbers each sample gets, and what they do to uint8 images.

Both kinds of loader use this, so they make the same batches. The numbers are a pure function of (seed, phase, epoch,
sample): a resume needs counters only, and it does not matter which process decodes which sample, or when.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dst.data import options
from dst.data.dataset import DataError, Shape
from dst.options import require
from dst.seeding import derive_seed

_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10


@dataclass
class Augment(options.Augment):
    """Random crop, then flip; see ``dst.data.options``. Raises ValueError for what cannot be."""

    def __post_init__(self) -> None:
        require(self)

    def check(self, shape: Shape) -> None:
        """Raise DataError if samples of this shape cannot be augmented like this."""
        if len(shape) != 3:
            for name in ("crop_padding", "flip", "resized_crop_scale"):
                if value := getattr(self, name):
                    raise DataError(f"{name}={value} is for images, but these samples are vectors: leave it out")
        elif self.padding_mode == "reflect" and self.crop_padding >= min(shape[1:]):
            raise DataError(
                f"crop_padding={self.crop_padding}: reflection needs less than the image size, {shape[1]} x "
                f"{shape[2]}; choose a smaller one, or padding_mode=zeros"
            )


# ---------------------------------------------------------------------------------------------------------------------
# The random numbers


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of an epoch or of a part of one, one row for each sample, in the order of the samples.

    All int64 [N]: ``order``, the samples; ``rows`` and ``columns``, where in its padded image each crop begins;
    ``flips``, 1 for samples that are flipped; ``seeds`` of the resized crops. Numbers that are not needed are None.
    """

    order: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    flips: Tensor | None = None
    seeds: Tensor | None = None


def draw(augment: Augment, samples: int, seed: int, epoch: int, phase: int, *, shuffle: bool) -> Draws:
    """Return the numbers of an epoch. They are drawn on the CPU, so that all devices see the same batches."""

    def generator(use: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed, use, phase, epoch))

    order = torch.randperm(samples, generator=generator("order")) if shuffle else torch.arange(samples)
    rows = columns = flips = seeds = None
    if augment.crop_padding:
        places = 2 * augment.crop_padding + 1
        rows, columns = torch.randint(places, (2, samples), generator=generator("crop"))[:, order]
    if augment.flip:
        flips = torch.randint(2, (samples,), generator=generator("flip"))[order]
    if augment.resized_crop_scale is not None:
        seeds = torch.randint(2**63 - 1, (samples,), generator=generator("resized_crop"))[order]
    return Draws(order, rows, columns, flips, seeds)


def resized_crop_box(height: int, width: int, scale: Sequence[float], seed: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random-resized crop, distributed as torchvision's (Inception crop).

    The area is uniform in ``scale`` (shares of the image's area), the ratio log-uniform in 3/4..4/3. If ten tries do
    not fit into the image, it is the largest central crop of an allowed ratio.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    for _ in range(_TRIES):
        area = height * width * uniform(scale[0], scale[1])
        ratio = math.exp(uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            return top, int(torch.randint(width - w + 1, (1,), generator=generator)), h, w
    ratio = min(max(width / height, _RATIOS[0]), _RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


# ---------------------------------------------------------------------------------------------------------------------
# What they do


class Crops:
    """Images (uint8 [N, C, H, W]), on any device, from which crops are taken.

    They are padded, and viewed as overlapping runs [offset, length of a crop in memory]: a crop of C x H x W out of a
    padded image lies within one run of memory, from its first pixel to its last. Selecting a run is one plain copy a
    sample, on a CPU about 5 times faster than indexing rows and columns. The strides with which a run is read skip the
    pixels beside the crop.
    """

    def __init__(self, images: Tensor, augment: Augment) -> None:
        self._shape = images.shape[1:]
        self.pixels = pixels = _padded(images, augment).contiguous()
        """The padded images, uint8 [N, C, H, W]."""
        self._strides = pixels.stride()
        run = sum((size - 1) * stride for size, stride in zip(self._shape, self._strides[1:], strict=True)) + 1
        self._windows = pixels.as_strided((pixels.numel() - run + 1, run), (1, 1))

    def positions(self, images: Tensor, draws: Draws) -> Tensor:
        """Return where in memory the crops of ``draws`` out of these ``images`` (int64 [M]) begin."""
        start = images * self._strides[0]
        if draws.rows is None or draws.columns is None:
            return start
        return start + draws.rows * self._strides[2] + draws.columns

    def take(self, positions: Tensor, flips: Tensor | None) -> Tensor:
        """Return the crops (uint8 [M, C, H, W], not contiguous) that begin at ``positions``, flipped where asked."""
        runs = self._windows.index_select(0, positions)
        crops = runs.as_strided((len(runs), *self._shape), (runs.shape[1], *self._strides[1:]))
        return crops if flips is None else _flipped(crops, flips)


def _padded(images: Tensor, augment: Augment) -> Tensor:
    padding = augment.crop_padding
    if padding == 0:
        return images
    padded = functional.pad(images, (padding,) * 4)
    if augment.padding_mode == "reflect":  # torch's own reflection does not take uint8
        for dimension in (2, 3):  # the corners come with the second
            size = images.shape[dimension]
            for outside, inside in ((0, padding + 1), (padding + size, size - 1)):
                mirrored = padded.narrow(dimension, inside, padding).flip(dimension)
                padded.narrow(dimension, outside, padding).copy_(mirrored)
    return padded


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Flip the images where ``flips`` is 1, by selecting from both versions (half the time of ``torch.where``)."""
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + flips * len(images))
