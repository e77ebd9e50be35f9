"""CIFAR-10 and CIFAR-100 in the original "python version", in the folders where torchvision keeps them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dst.data import published
from dst.data.bounds import read_bounded
from dst.data.dataset import DataError, NotHereError, Split
from dst.data.download import fetch

_SHAPE = (3, 32, 32)
_TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))


def cifar10(root: Path, download: bool, digest: str | None = None) -> tuple[Split, Split, int]:
    """Read CIFAR-10 from ``root``/cifar-10-batches-py, fetching it if ``download``.

    ``DataError`` if it is not whole, or its content is not that of ``digest`` (default: the published one).
    """
    with _in_layout(folder := root / "cifar-10-batches-py"):
        content = _read("cifar10", "CIFAR10", folder, download, digest)
        train = _split([content[name] for name in _TRAIN_10], "labels")
        return train, _split([content["test_batch"]], "labels"), len(content["batches.meta"]["label_names"])


def cifar100(root: Path, download: bool, digest: str | None = None) -> tuple[Split, Split, int]:
    """Read CIFAR-100 from ``root``/cifar-100-python, as ``cifar10``."""
    with _in_layout(folder := root / "cifar-100-python"):
        content = _read("cifar100", "CIFAR100", folder, download, digest)
        train, test = (_split([content[name]], "fine_labels") for name in ("train", "test"))
        return train, test, len(content["meta"]["fine_label_names"])


@contextmanager
def _in_layout(folder: Path) -> Iterator[None]:
    """Turn any failure to understand a variant into an error that names its folder; the originals are complete."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder.absolute()} is not in the layout of the original files ({told})") from error


def _read(name: str, dataset: str, folder: Path, download: bool, digest: str | None) -> dict[str, Any]:
    """Return the content of each file. All sums are compared before anything is unpickled: a pickle can run code."""
    missing = [file for file in published.SUMS[name] if not (folder / file).is_file()]
    if missing:
        _fetch(dataset, folder, missing, download)
    try:
        content = {file: read_bounded(folder / file) for file in published.SUMS[name]}
    except OSError as error:
        raise DataError(f"cannot read {dataset}: {error}") from error
    sums = {file: published.md5(data) for file, data in content.items()}
    if differs := published.difference(name, sums, digest or published.digest(name)):
        raise DataError(
            f"{folder.absolute()}: {differs}, and have it unpickled, which can run code: only if you trust where it is "
            "from. Or delete and fetch again (download=True)"
        )
    return {file: pickle.loads(data, encoding="latin1") for file, data in content.items()}


def _fetch(dataset: str, folder: Path, missing: list[str], download: bool) -> None:
    reason = "download=False"
    try:
        if download:
            fetch(dataset, folder.parent, folder.name, missing)
            return
    except (OSError, RuntimeError, ImportError) as error:
        reason = f"downloading failed: {' '.join(str(error).split())}"
    raise NotHereError(
        f"{dataset} is not complete: {', '.join(missing)} not found in {folder.absolute()}; {reason}. Put the files "
        f"there, or let root=FOLDER name the folder that holds {folder.name}, or run once with download=True on a "
        "machine that has a network"
    )


def _split(parts: list[dict[str, Any]], labels: str) -> Split:
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, *_SHAPE)
    return Split(torch.from_numpy(images), torch.tensor([label for part in parts for label in part[labels]]))
