"""Labelled image files: how they are found, what they are known by, how they are checked and decoded."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dst.data.dataset import DataError, Shape
from dst.data.fit import Fit

_SUFFIXES = (".jpg", ".jpeg", ".png")
_CHANNELS = 3
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_TAIL = 32  # bytes in which a whole file's end marker is: some writers pad
_READERS = 8
_SHOWN = 8

Entry = tuple[str, int, int]
"""An image file: path relative to the set's folder, size in bytes, time of its last change in ns.

That is the inode's change time, since the time of modification can be set back.
"""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below ``root``. As arrays, which processes share without copies: a set may have millions.

    ``names``: their paths as bytes [N]; ``stamps``: size and time of change, int64 [N, 2]; ``labels``: int64 [N].
    Whatever they hold, they are decoded to three channels (grey is repeated, transparency dropped) and fitted by
    ``fit``.
    """

    root: Path
    names: np.ndarray
    stamps: np.ndarray
    labels: Tensor
    fit: Fit = field(default_factory=Fit)

    @classmethod
    def of(cls, root: Path, classes: Iterable[Iterable[Entry]]) -> "Files":
        """Make one of a list of files for each class, in the order of the labels."""
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
        """Channels, height and width of a fitted image; ``DataError`` without a size, when only decoding would tell."""
        if self.fit.size is None:
            raise DataError(
                "data.size=null: images that are streamed must be brought to one size, e.g. data.size=224; or keep "
                "the set in memory with data.storage=resident if all have the same size"
            )
        return _CHANNELS, self.fit.size, self.fit.size

    def path(self, number: int) -> Path:
        """Return the path of a file."""
        return self.root / os.fsdecode(self.names[number])

    def select(self, index: Tensor) -> "Files":
        """Return the files at ``index`` (int64 [M]), in that order."""
        at = index.numpy()
        return replace(self, names=self.names[at], stamps=self.stamps[at], labels=self.labels[index])

    def fitted(self, number: int) -> Tensor:
        """Decode a file and fit it: uint8 [C, H, W]."""
        return self.fit(decode(self.path(number)).unsqueeze(0)).squeeze(0)

    def check(self) -> None:
        """Raise DataError if a file looks empty or truncated; reads the first and last bytes of each."""
        if (self.stamps[:, 0] == 0).any():
            raise DataError(f"{self.path(int(self.stamps[:, 0].argmin()))} is empty: {_AGAIN}")
        with ThreadPoolExecutor(_READERS) as readers:  # waiting for the disk, not computing
            for _ in readers.map(lambda number: _check_whole(self.path(number)), range(len(self)), chunksize=256):
                pass


def listing_digest(*parts: Files) -> str:
    """Return the SHA-256, in hex, of where the files lie, their names, labels, sizes, and when they were last changed.

    Nothing is read: as long as it is the same, so is what the files hold (see ``dst.data.content``).
    """
    total = hashlib.sha256()
    for files in parts:
        total.update(f"{len(files)} {files.names.dtype} {files.root.resolve()}".encode(errors="surrogateescape"))
        for values in (files.names, files.stamps, files.labels.numpy()):
            total.update(np.ascontiguousarray(values).data if values.dtype.kind == "i" else values.tobytes())
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Decoding and checking

_AGAIN = "replace it with a whole copy, or delete it"


def decode(path: Path) -> Tensor:
    """Return the image as uint8 [3, H, W]; ``DataError`` that names the file if it cannot be decoded."""
    from torchvision.io import ImageReadMode, decode_image  # 1 s to import: only when there is no cache

    try:
        image: Tensor = decode_image(str(path), mode=ImageReadMode.RGB)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2]  # without the place in torchvision's source
        raise DataError(f"cannot decode {path} ({reason}): {_AGAIN}") from error
    return image


def _check_whole(path: Path) -> None:
    """Look for a JPEG's or PNG's start and end; decode it if in doubt (some JPEGs have bytes after their end)."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_PNG))
            file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    is_whole = (head.startswith(_JPEG) and b"\xff\xd9" in tail) or (head == _PNG and b"IEND" in tail)
    if not is_whole:
        decode(path)


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def class_folders(root: Path, part: str) -> dict[str, list[Entry]]:
    """Return the images of each class folder of ``root``/``part``, by its name, all sorted.

    Images are .jpg, .jpeg and .png, at any depth below the class folder; other files and hidden ones are passed over.
    ``DataError`` if there are no class folders, or no images in one.
    """
    folder = root / part
    classes = {item.name: images_below(root, f"{part}/{item.name}") for item in _listed(folder) if item.is_dir()}
    if not classes:
        raise DataError(f"{folder} has no class folders: it must hold a folder of images for each class")
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise DataError(
            f"{folder} has class folders without images ({', '.join(_SUFFIXES)}): {_some(empty)}. Fill or delete them"
        )
    return classes


def images_below(root: Path, folder: str) -> list[Entry]:
    """Return the images of ``root``/``folder``, at any depth."""
    found: list[Entry] = []
    for item in _listed(root / folder):
        name = f"{folder}/{item.name}"
        if item.is_dir():
            found += images_below(root, name)
        elif item.name.lower().endswith(_SUFFIXES):
            about = item.stat()
            found.append((name, about.st_size, about.st_ctime_ns))
    return found


def same_classes(root: Path, train: Mapping[str, object], other: Mapping[str, object], part: str) -> None:
    """Raise DataError if the two parts of a set do not have the same classes."""
    if train.keys() != other.keys():
        only = {"train": sorted(train.keys() - other.keys()), part: sorted(other.keys() - train.keys())}
        told = " and ".join(f"only in {name}: {_some(names)}" for name, names in only.items() if names)
        raise DataError(f"{root}: train and {part} must have the same classes, but {told}")


def content(folder: Path) -> str:
    """Return what is in a folder, in words, for messages."""
    if not folder.is_dir():
        return "there is no such folder"
    return f"it has {_some([item.name for item in _listed(folder)]) or 'nothing'}"


def _listed(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as items:
            return sorted((item for item in items if not item.name.startswith(".")), key=lambda item: item.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
