"""What a data set is once it is decoded: two labelled stacks of uint8 images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class DataError(ValueError):
    """Data is missing, truncated or not what it should be; the message says what, where, and how to mend it."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images: ``images`` uint8 [N, C, H, W], ``labels`` int64 [N], N >= 1. ``DataError`` otherwise."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4 or images.numel() == 0:
            raise DataError(f"images must be uint8 [N, C, H, W] and not empty: got {images.dtype} {list(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(images)}], one for each image: got {labels.dtype} {list(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "Split":
        """Return the samples at ``index`` (int64 [M]), in that order."""
        return Split(self.images.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set; ``digest`` is the SHA-256 of its content in hex. ``DataError`` if its parts disagree."""

    name: str
    train: Split
    test: Split
    classes: int
    digest: str

    def __post_init__(self) -> None:
        train, test = (tuple(split.images.shape[1:]) for split in (self.train, self.test))
        if train != test:
            raise DataError(f"{self.name}: training images are {train} but test images {test}")
        for part, split in (("training", self.train), ("test", self.test)):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"{self.name}: {part} labels run from {low} to {high}, but with {self.classes} classes they must "
                    f"lie in 0..{self.classes - 1}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


Reader = Callable[..., tuple[Split, Split, int]]
"""``reader(root: Path, download: bool) -> (train, test, number of classes)``: a row of the ``data`` registry."""
