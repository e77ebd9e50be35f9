"""A data set: two labelled splits, of images or vectors in memory or of files that are decoded when needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]
"""Channels, height and width of an image, or the length of a vector."""


class DataError(ValueError):
    """Data is missing, damaged or not what it should be; the message says what, where, and how to mend it."""


class NotHereError(DataError):
    """There is no such data at all in this place; another machine may see it."""


class Samples(Protocol):
    """A split: images in memory (``Split``) or in files (``Files``), vectors (``Vectors``), or a ``Table``'s rows."""

    @property
    def labels(self) -> Tensor:
        """Classes, int64 [N]."""
        ...

    @property
    def shape(self) -> Shape:
        """Shape of a sample."""
        ...

    def __len__(self) -> int: ...

    def select(self, index: Tensor) -> "Samples":
        """Return the samples at ``index`` (int64 [M]), in that order."""
        ...


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

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def select(self, index: Tensor) -> "Split":
        """Return the samples at ``index`` (int64 [M]), in that order."""
        return Split(self.images.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True, eq=False)
class Vectors:
    """Labelled vectors: ``values`` float32 [N, F], finite, ``labels`` int64 [N], N and F >= 1."""

    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """The number of features."""
        return (self.values.shape[1],)

    def select(self, index: Tensor) -> "Vectors":
        """Return the samples at ``index`` (int64 [M]), in that order."""
        return Vectors(self.values.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, identified by its ``digest``, a SHA-256 in hex. ``DataError`` if its parts disagree.

    If images are in memory, it is the digest of the decoded content, which also shows whether two machines decode
    alike. If they stay in files, it is the digest of the files' names, labels and bytes; of a table, that of its file.
    """

    name: str
    train: Samples
    test: Samples
    classes: int
    digest: str

    def __post_init__(self) -> None:
        train, test = self.train.shape, self.test.shape
        if train != test:
            raise DataError(
                f"{self.name}: training images are {train} but test images {test}; bring them to one, e.g. "
                f"size={train[-1]}"
            )
        for part, split in (("training", self.train), ("test", self.test)):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"{self.name}: {part} labels run from {low} to {high}, but with {self.classes} classes they must "
                    f"lie in 0..{self.classes - 1}"
                )

    @property
    def shape(self) -> Shape:
        """Shape of a sample."""
        return self.train.shape


Reader = Callable[..., tuple[Samples, Samples, int]]
"""``reader(root: Path, download: bool) -> (train, test, number of classes)``: a row of the ``data`` registry.

If its name fixes its content (``dst.data.published``), it also takes the ``digest`` of the wanted content, and compares
the two.
"""
