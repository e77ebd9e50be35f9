"""CIFAR-10 and CIFAR-100 in the original "python version", in the folders where torchvision keeps them."""

from pathlib import Path
from typing import Any

import torch

from dst.data.dataset import DataError, Split
from dst.data.download import fetch


def cifar10(root: Path, download: bool) -> tuple[Split, Split, int]:
    """Read CIFAR-10 from ``root``/cifar-10-batches-py, fetching it if ``download``; ``DataError`` if not whole."""
    return _read("CIFAR10", root, download)


def cifar100(root: Path, download: bool) -> tuple[Split, Split, int]:
    """Read CIFAR-100 from ``root``/cifar-100-python, fetching it if ``download``; ``DataError`` if not whole."""
    return _read("CIFAR100", root, download)


def _read(dataset: str, root: Path, download: bool) -> tuple[Split, Split, int]:
    from torchvision import datasets  # 3 s to import: only when there is no cache

    kind = getattr(datasets, dataset)
    folder = root / kind.base_folder
    missing = [name for name, _ in _files(kind) if not (folder / name).is_file()]
    if missing:
        _fetch(dataset, root, folder, missing, download)
    _verify(kind, folder)
    train, test = kind(str(root), train=True), kind(str(root), train=False)
    return _split(train), _split(test), len(train.classes)


def _files(kind: Any) -> list[tuple[str, str]]:
    """Names and MD5 sums, as torchvision knows them."""
    return [*map(tuple, kind.train_list), *map(tuple, kind.test_list), (kind.meta["filename"], kind.meta["md5"])]


def _fetch(dataset: str, root: Path, folder: Path, missing: list[str], download: bool) -> None:
    reason = "data.download=false"
    try:
        if download:
            fetch(dataset, root, folder.name, missing)
            return
    except (OSError, RuntimeError, ImportError) as error:
        reason = f"downloading failed: {' '.join(str(error).split())}"
    raise DataError(
        f"{dataset} is not complete: {', '.join(missing)} not found in {folder.absolute()}; {reason}. Put the files "
        f"there, or let data.root=FOLDER name the folder that holds {folder.name}, or run once with data.download=true "
        "on a machine that has a network"
    )


def _verify(kind: Any, folder: Path) -> None:
    """Compare all MD5 sums before anything is unpickled: a pickle can do whatever it likes."""
    from torchvision.datasets.utils import check_integrity

    damaged = [name for name, md5 in _files(kind) if not check_integrity(str(folder / name), md5)]
    if damaged:
        raise DataError(
            f"{', '.join(damaged)} in {folder.absolute()}: damaged, or not the original (the MD5 sum differs); delete "
            "and fetch again (data.download=true)"
        )


def _split(part: Any) -> Split:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # torchvision's are [N, H, W, C]
    return Split(images, torch.tensor(part.targets))
