"""Labelled image files: where they are, and the keys that identify them."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dst.data.dataset import DataError, Shape
from dst.data.decode import CHANNELS, decode
from dst.data.resize import Resize
from dst.files import sha256

DECODING = 2
"""Raise it when decoding changes: all files are then decoded and verified anew."""

Entry = tuple[str, int, int]
"""An image file: path relative to the set's folder, size in bytes, time of its last change in ns.

The time is the inode's change time, since the time of modification can be set back.
"""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below ``root``, as arrays, which processes share without copies: a set may have millions.

    ``names``: their paths as bytes [N]; ``stamps``: size and time of change, int64 [N, 2]; ``labels``: int64 [N]. All
    images are decoded to three channels and resized by ``resize``.
    """

    root: Path
    names: np.ndarray
    stamps: np.ndarray
    labels: Tensor
    resize: Resize = field(default_factory=Resize)

    @classmethod
    def of(cls, root: Path, classes: Iterable[Iterable[Entry]]) -> "Files":
        """Return the files of all classes, given a list of files for each class in the order of the labels."""
        entries = [(entry, label) for label, files in enumerate(classes) for entry in files]
        return cls(
            root,
            np.array([os.fsencode(name) for (name, _, _), _ in entries]),
            np.array([stamp for (_, *stamp), _ in entries], dtype=np.int64),
            torch.tensor([label for _, label in entries]),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of a resized image; ``DataError`` without a size, since only decoding shows it."""
        if self.resize.size is None:
            raise DataError(
                "size=None: images that are streamed must be brought to one size, e.g. size=224; or keep the set in "
                "memory with storage=resident if all have the same size"
            )
        return CHANNELS, self.resize.size, self.resize.size

    def path(self, number: int) -> Path:
        """Return the path of a file."""
        return self.root / os.fsdecode(self.names[number])

    def joined(self, other: "Files") -> "Files":
        """Return these files followed by the others, which must lie below the same root."""
        return replace(
            self,
            names=np.concatenate([self.names, other.names]),
            stamps=np.concatenate([self.stamps, other.stamps]),
            labels=torch.cat([self.labels, other.labels]),
        )

    def select(self, index: Tensor) -> "Files":
        """Return the files at ``index`` (int64 [M]), in that order."""
        at = index.numpy()
        return replace(self, names=self.names[at], stamps=self.stamps[at], labels=self.labels[index])

    def resized(self, number: int) -> Tensor:
        """Decode a file and resize it: uint8 [C, H, W]."""
        return self.resize(decode(self.path(number)).unsqueeze(0)).squeeze(0)


def listing_digest(*parts: Files) -> str:
    """Return the SHA-256, in hex, of the files' places, names, labels, sizes and times of change.

    Nothing is read: as long as this digest stays, the files hold the same (see ``dst.data.content``).
    """
    total = hashlib.sha256()
    for files in parts:
        total.update(f"{len(files)} {files.names.dtype} {files.root.resolve()}".encode(errors="surrogateescape"))
        for values in (files.names, files.stamps, files.labels.numpy()):
            total.update(np.ascontiguousarray(values).data if values.dtype.kind == "i" else values.tobytes())
    return total.hexdigest()


def decoded_key(*parts: Files) -> str:
    """Return the key, in hex, of a set whose files were all decoded: a digest of listing and way of decoding."""
    return sha256(f"decoding {DECODING} {listing_digest(*parts)}")


def file_keys(files: Files) -> np.ndarray:
    """Return the key of each file, uint64 [N]: a digest of its name, size and time of change."""
    stamps = np.ascontiguousarray(files.stamps).view(f"V{2 * files.stamps.itemsize}").ravel()
    pairs, key = zip(files.names.tolist(), stamps.tolist(), strict=True), f"decoding {DECODING}".encode()
    digests = [hashlib.blake2b(name + stamp, digest_size=8, key=key).digest() for name, stamp in pairs]
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)
