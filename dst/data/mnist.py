"""MNIST and Fashion-MNIST from their original idx files, in the folders where torchvision keeps them."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dst.data import published
from dst.data.bounds import read_bounded
from dst.data.dataset import DataError, NotHereError, Split
from dst.data.download import fetch

_CLASSES = 10
_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def mnist(root: Path, download: bool, digest: str | None = None) -> tuple[Split, Split, int]:
    """Read MNIST from ``root``/MNIST/raw, fetching missing files if ``download``.

    ``DataError`` without them, or if their content is not that of ``digest`` (see ``dst.data.published``).
    """
    return _read("mnist", "MNIST", root, download, digest)


def fashion_mnist(root: Path, download: bool, digest: str | None = None) -> tuple[Split, Split, int]:
    """Read Fashion-MNIST from ``root``/FashionMNIST/raw, as ``mnist``."""
    return _read("fashion_mnist", "FashionMNIST", root, download, digest)


def _read(name: str, dataset: str, root: Path, download: bool, digest: str | None) -> tuple[Split, Split, int]:
    folder = root / dataset / "raw"
    if _missing(folder):
        _fetch(dataset, root, download)
    content = {file: _content(_find(folder, file) or folder / file) for file in (*_TRAIN, *_TEST)}
    train, test = _split(folder, _TRAIN, content), _split(folder, _TEST, content)
    sums = {file: published.md5(data) for file, data in content.items()}
    if differs := published.difference(name, sums, digest):
        raise DataError(f"{folder.absolute()}: {differs}. Or delete the file and fetch it again (download=True)")
    return train, test, _CLASSES


# ---------------------------------------------------------------------------------------------------------------------
# Finding the files


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in (*_TRAIN, *_TEST) if _find(folder, name) is None]


def _not_found(dataset: str, root: Path, why: str) -> DataError:
    folder = root / dataset / "raw"
    return NotHereError(
        f"{dataset} is not complete: {', '.join(_missing(folder))} not found in {folder.absolute()} (nor as .gz); "
        f"{why}. Put the files there, or let root=FOLDER name the folder that holds {dataset}/raw, or run once with "
        "download=True on a machine that has a network"
    )


def _fetch(dataset: str, root: Path, download: bool) -> None:
    if not download:
        raise _not_found(dataset, root, "download=False")
    try:
        fetch(dataset, root, f"{dataset}/raw", _missing(root / dataset / "raw"))
    except (OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())  # torchvision's has a line for each mirror
        raise _not_found(dataset, root, f"downloading failed: {reason}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Reading the files

_AGAIN = "delete both files and fetch them again (download=True)"


def _split(folder: Path, names: tuple[str, str], content: Mapping[str, bytes]) -> Split:
    images, labels = (_find(folder, name) or folder / name for name in names)
    pixels = _idx(images, content[names[0]], dimensions=3)
    classes = _idx(labels, content[names[1]], dimensions=1)
    if len(pixels) != len(classes):
        raise DataError(f"{images} has {len(pixels)} images but {labels} has {len(classes)} labels; {_AGAIN}")
    if classes.max() >= _CLASSES:
        raise DataError(f"{labels} has a label {classes.max()}, but there are only {_CLASSES} classes; {_AGAIN}")
    return Split(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(classes.astype(np.int64)))


def _content(path: Path) -> bytes:
    """Return the content of a file, unpacked."""
    try:
        return read_bounded(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; delete {path} and fetch it again (download=True)") from error


def _idx(path: Path, data: bytes, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an idx file: bytes 0 0 8 and the number of dimensions, big-endian sizes, data."""
    again = f"delete {path} and fetch it again (download=True)"
    header, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])
    if data[:4] != magic:
        raise DataError(f"{path} is no idx file of {dimensions}-d bytes: it starts with {data[:4]!r}; {again}")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + math.prod(shape)
    if len(data) != expected or 0 in shape:
        raise DataError(
            f"{path} is damaged: it has {len(data)} bytes, {expected} expected for "
            f"{' x '.join(map(str, shape))}; {again}"
        )
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=header).reshape(shape)
