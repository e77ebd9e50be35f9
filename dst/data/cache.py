"""Decode a data set once, keep it as one file, and verify that file by its digest whenever it is read.

A cache file is one line of JSON (the manifest) and then the raw bytes of the labels (int64, little-endian) and images
(uint8) of the training and the test split. Nothing is unpickled, and nothing is used before the digest was compared.
"""

import hashlib
import json
import logging
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dst.data.dataset import DataError, Dataset, Reader, Split

_LOG = logging.getLogger(__name__)
_FORMAT = 1  # raise it when the layout of the file or the way images are prepared changes
_LONGEST_MANIFEST = 4096
_IMAGES_AT_ONCE = 4096


def load(name: str, read: Reader, *, root: str, cache: str, download: bool, size: int | None = None) -> Dataset:
    """Return a data set from its cache file, or decode it with ``read`` and write that file.

    The file is known by ``name`` and ``size`` alone: delete it to have the raw files in ``root`` read again. ``size``
    resizes images to ``size`` x ``size``. A damaged cache file is rebuilt, with a warning; what is wrong with the raw
    files is a ``DataError``. Processes that prepare the same set at once do not disturb each other.
    """
    if size is not None and size < 1:
        raise DataError(f"data.size={size}: must be a number of pixels >= 1, or null to keep the images as they are")
    path = Path(cache).expanduser() / (f"{name}.bin" if size is None else f"{name}-{size}.bin")
    try:
        return _read(path, name, size)
    except FileNotFoundError:
        _LOG.info("%s: preparing it from %s", name, root)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s: cannot use its cache %s (%s); rebuilding it from the raw data", name, path, error)
    train, test, classes = read(Path(root).expanduser(), download=download)
    train, test = _resized(train, size), _resized(test, size)
    dataset = Dataset(name, train, test, classes, _digest(_content(train, test, classes), _tensors(train, test)))
    try:
        _write(path, dataset, size)
    except OSError as error:  # a full disk or a read-only folder costs time at each start, but is no reason to stop
        _LOG.warning("%s: cannot write its cache %s (%s); data.cache=FOLDER chooses another place", name, path, error)
    return dataset


# ---------------------------------------------------------------------------------------------------------------------
# The file


def _tensors(train: Split, test: Split) -> tuple[Tensor, ...]:
    """In the order of the file: labels first, so that they are aligned."""
    return train.labels, test.labels, train.images, test.images


def _content(train: Split, test: Split, classes: int) -> dict[str, Any]:
    return {"classes": classes, "shape": list(train.images.shape[1:]), "train": len(train), "test": len(test)}


def _digest(content: dict[str, Any], tensors: Sequence[Tensor]) -> str:
    """SHA-256 of what the data is, shapes included; not of its name or of how it is stored."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _write(path: Path, dataset: Dataset, size: int | None) -> None:
    manifest = {
        "format": _FORMAT,
        "name": dataset.name,
        "size": size,
        "sha256": dataset.digest,
        "content": _content(dataset.train, dataset.test, dataset.classes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer: whoever replaces last wins, and all write the same bytes.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(json.dumps(manifest).encode() + b"\n")
            for tensor in _tensors(dataset.train, dataset.test):
                file.write(tensor.contiguous().numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, name: str, size: int | None) -> Dataset:
    """``FileNotFoundError`` if there is none; ``OSError, ValueError, KeyError, TypeError`` if it is no good."""
    with open(path, "rb") as file:
        manifest = json.loads(file.readline(_LONGEST_MANIFEST))
        known = {key: manifest[key] for key in ("format", "name", "size")}
        if known != {"format": _FORMAT, "name": name, "size": size}:
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


# ---------------------------------------------------------------------------------------------------------------------
# Preparation


def _resized(split: Split, size: int | None) -> Split:
    if size is None or tuple(split.images.shape[2:]) == (size, size):
        return split
    pieces = [  # piece by piece, because the whole set as floats may not fit into memory
        functional.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for piece in torch.split(split.images, _IMAGES_AT_ONCE)
    ]
    return Split(torch.cat(pieces), split.labels)
