"""Decode a data set once, keep it as one file, and verify that file by its digest whenever it is read.

A cache file is one line of JSON (the manifest, which names the raw content that it was made from) and then the raw
bytes of the labels (int64, little-endian) and images (uint8) of the training and the test split. Nothing is unpickled,
and nothing is used before its digest has been compared.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dst.data import published
from dst.data.bounds import check_memory
from dst.data.bundled import BUNDLED, read_bundled
from dst.data.content import check_unchanged, files_digest
from dst.data.dataset import DataError, Dataset, Reader, Samples, Split
from dst.data.decode import size_of
from dst.data.files import DECODING, Files, decoded_key
from dst.data.options import Storage
from dst.data.prepare import decode_all, verify
from dst.data.resize import Resize
from dst.data.table import Table
from dst.data.table_file import read_bytes
from dst.files import replacing, sha256, write_or_keep
from dst.options import checked

_LOG = logging.getLogger(__name__)
_FORMAT = 3  # raise it when the layout of the file or the way images are prepared changes
_LONGEST_MANIFEST = 4096

RESIDENT_BYTES = 4 << 30
"""Largest decoded size, training and test images together, at which ``auto`` keeps image files in memory: 4 GiB."""


@checked
def load(
    name: str,
    read: Reader,
    *,
    root: str,
    cache: str,
    download: bool,
    digest: str | None = None,
    size: int | None = None,
    center_crop: float | None = None,
    storage: Storage = "auto",
) -> Dataset:
    """Return a data set: decoded, from its cache file or by ``read``; as image files that are streamed; or as tables.

    ``digest``: identifies the wanted content (see ``content_digest``); ``DataError`` if the raw files in ``root`` have
    another. The name and the first line of a cache file say which content it holds. So with a ``digest`` a cache file
    is enough, and nothing looks at the raw files. ``size`` and ``center_crop``: see ``Resize``. ``storage``:
    ``resident`` decodes everything into memory, ``stream`` leaves images in their files, ``auto`` decodes sets of up to
    ``RESIDENT_BYTES``; sets that are not image files are always resident, and tables are read anew each time. A damaged
    cache file is rebuilt, with a warning; damaged raw files are a ``DataError``. Processes that prepare the same set at
    once do not disturb each other.
    """
    resize, folder = Resize(size, center_crop), Path(cache).expanduser()
    path = _path(folder, name, digest, resize)
    if storage == "resident" or (storage == "auto" and path.exists() and path.stat().st_size <= RESIDENT_BYTES):
        dataset = _cached(path, name, digest)
        if dataset is not None:
            return dataset
    _LOG.info("%s: preparing it from %s", name, root)
    train, test, classes = _raw(name, read, root, download, digest)
    if isinstance(train, Files) and isinstance(test, Files):
        content = files_digest(name, train, test, folder)
        _compare(f"root={root}", content, digest)
        train, test = replace(train, resize=resize), replace(test, resize=resize)
        return _of_files(name, train, test, classes, content, folder, storage)
    if isinstance(train, Table):
        _compare(train.source, train.digest, digest)
        _refuse_of_images(name, size, storage)
        return Dataset(name, train, test, classes, train.digest)
    assert isinstance(train, Split)
    assert isinstance(test, Split)
    if name not in published.SUMS:
        _compare(f"root={root}", _digest(_content(train, test, classes), _tensors(train, test)), digest)
    _refuse_stream(name, storage)
    return _stored(path, name, _resized(train, resize), _resized(test, resize), classes, digest)


def _refuse_stream(name: str, storage: str) -> None:
    if storage == "stream":
        raise DataError(
            f"storage=stream: {name} is not a set of image files and always lives in memory; choose storage=auto, and "
            "resized_crop_scale=None, which would ask for streaming"
        )


def _refuse_of_images(name: str, size: int | None, storage: str) -> None:
    if size is not None:
        raise DataError(f"size={size} would be ignored: {name} is a table, not a set of images; leave it out")
    _refuse_stream(name, storage)


def content_digest(name: str, read: Reader, *, root: str, cache: str, download: bool) -> str:
    """Return the digest of the set in ``root``, which identifies a set whose name does not fix its content.

    For image files it is the digest of their names, labels and bytes, which are read once as long as nothing changes;
    for other sets, of the images and labels that ``read`` returns. ``NotHereError`` if there is no such set,
    ``DataError`` if it is damaged.
    """
    train, test, classes = _raw(name, read, root, download, None)
    if isinstance(train, Files) and isinstance(test, Files):
        return files_digest(name, train, test, Path(cache).expanduser())
    assert isinstance(train, Split)
    assert isinstance(test, Split)
    return _digest(_content(train, test, classes), _tensors(train, test))


def table_digest(path: str) -> str:
    """Return the digest of the table at a path: the SHA-256 of its file, or of the numbers of a bundled one.

    It is not parsed; errors are those of ``content_digest``.
    """
    return read_bundled(path).digest if path in BUNDLED else sha256(read_bytes(Path(path)))


def _raw(name: str, read: Reader, root: str, download: bool, digest: str | None) -> tuple[Samples, Samples, int]:
    """Read a set; if its name fixes its content, ``read`` compares that file by file.

    ``DataError`` also if the system does not let it be read.
    """
    wanted = {"digest": digest} if name in published.SUMS and digest is not None else {}
    folder = Path(root).expanduser()
    try:
        return read(folder, download=download, **wanted)
    except OSError as error:
        raise DataError(f"cannot read the data in {folder.absolute()}: {error}") from error


def _compare(place: str, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise DataError(
            f"{place}: this is not the content that was asked for: its digest is {found}, but digest={wanted}. "
            f"Bring that content back, or ask for this one (digest={found}, or no digest at all), which is another run"
        )


def _path(cache: Path, name: str, content: str | None, resize: Resize) -> Path:
    return cache / f"{name}{f'-{content[:16]}' if content else ''}{resize}.bin"


def _of_files(name: str, train: Files, test: Files, classes: int, content: str, cache: Path, storage: str) -> Dataset:
    """Return a set of image files, resident or streamed."""
    path = _path(cache, name, content, train.resize)
    if storage == "auto":
        storage = "resident" if _decoded_bytes(path, train, test) <= RESIDENT_BYTES else "stream"
    if storage == "resident":
        dataset = _cached(path, name, content)
        if dataset is None:
            needed = _decoded_bytes(path, train, test)
            check_memory(f"{name}: all images decoded", needed, "storage=stream decodes them when they are needed")
            both, n = decode_all(train.joined(test), name), len(train)
            check_unchanged(train, test)
            train_split = Split(both.images[:n], both.labels[:n])
            test_split = Split(both.images[n:], both.labels[n:])
            dataset = _stored(path, name, train_split, test_split, classes, content)
        return dataset
    dataset = Dataset(name, train, test, classes, content)
    verify(train.joined(test), decoded_key(train, test), cache / f"{name}.verified", name)
    return dataset


def _decoded_bytes(path: Path, train: Files, test: Files) -> int:
    """Return how much memory the decoded set takes; without a size, all images are taken to be like the first."""
    if path.exists():
        return path.stat().st_size
    image = 3 * train.resize.size**2 if train.resize.size is not None else _first_bytes(train)
    return image * (len(train) + len(test))


def _first_bytes(files: Files) -> int:
    """Return the decoded size of the first image that has a header; 0 if none has, as decoding will tell."""
    for number in range(len(files)):
        with suppress(ValueError):
            return 3 * math.prod(size_of(files.path(number)))
    return 0


def _cached(path: Path, name: str, raw: str | None) -> Dataset | None:
    try:
        return _read(path, name, raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s: cannot use its cache %s (%s); rebuilding it from the raw data", name, path, error)
        return None


def _stored(path: Path, name: str, train: Split, test: Split, classes: int, raw: str | None) -> Dataset:
    dataset = Dataset(name, train, test, classes, _digest(_content(train, test, classes), _tensors(train, test)))
    write_or_keep(partial(_store, path, train, test, dataset, raw))
    return dataset


def _store(path: Path, train: Split, test: Split, dataset: Dataset, raw: str | None) -> None:
    """Write a cache file. A full disk or a read-only folder costs time at each start, which is no reason to stop."""
    try:
        _write(path, train, test, dataset, raw)
    except OSError as error:
        _LOG.warning(
            "%s: cannot write its cache %s (%s); cache=FOLDER chooses another place", dataset.name, path, error
        )


# ---------------------------------------------------------------------------------------------------------------------
# The file


def _tensors(train: Split, test: Split) -> tuple[Tensor, ...]:
    """Return the tensors in the order of the file: labels first, so that they are aligned."""
    return train.labels, test.labels, train.images, test.images


def _content(train: Split, test: Split, classes: int) -> dict[str, Any]:
    return {"classes": classes, "shape": list(train.images.shape[1:]), "train": len(train), "test": len(test)}


def _digest(content: dict[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return the SHA-256 of the data and its shapes, whatever its name is and however it is stored."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _write(path: Path, train: Split, test: Split, dataset: Dataset, raw: str | None) -> None:
    manifest = {
        "format": _FORMAT,
        "decoding": DECODING,
        "name": path.stem,
        "raw": raw,
        "sha256": dataset.digest,
        "content": _content(train, test, dataset.classes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes the last one to replace the file wins; all write the same bytes.
    tensors = _tensors(train, test)
    with replacing(path, needed=sum(tensor.numel() * tensor.element_size() for tensor in tensors)) as (file,):
        file.write(json.dumps(manifest).encode() + b"\n")
        for tensor in tensors:
            file.write(tensor.contiguous().numpy().data)


def _read(path: Path, name: str, raw: str | None) -> Dataset:
    """Read a cache file; ``FileNotFoundError`` without one; ``OSError, ValueError, KeyError, TypeError`` if damaged."""
    with open(path, "rb") as file:
        manifest = json.loads(file.readline(_LONGEST_MANIFEST))
        known = {key: manifest[key] for key in ("format", "decoding", "name", "raw")}
        if known != {"format": _FORMAT, "decoding": DECODING, "name": path.stem, "raw": raw}:
            raise ValueError(f"it holds something else: {known}")
        content = manifest["content"]
        shape, lengths = content["shape"], (content["train"], content["test"])
        image_bytes = math.prod(shape)
        sizes = [8 * lengths[0], 8 * lengths[1], image_bytes * lengths[0], image_bytes * lengths[1]]
        there, expected = os.fstat(file.fileno()).st_size - file.tell(), sum(sizes)
        if there != expected:  # before memory is asked for
            raise ValueError(f"it has {there} bytes of data instead of {expected}")
        data = torch.empty(expected, dtype=torch.uint8)
        if file.readinto(data.numpy().data) != expected:
            raise ValueError("it shrank while it was read")
    train_labels, test_labels, train_images, test_images = torch.split(data, sizes)
    if _digest(content, (data,)) != manifest["sha256"]:
        raise ValueError("its content does not match its digest")
    train = Split(train_images.view(-1, *shape), train_labels.view(torch.int64))
    test = Split(test_images.view(-1, *shape), test_labels.view(torch.int64))
    return Dataset(name, train, test, content["classes"], manifest["sha256"])


def _resized(split: Split, resize: Resize) -> Split:
    return Split(resize(split.images), split.labels)
