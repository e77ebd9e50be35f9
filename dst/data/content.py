"""The content of a set of image files as one digest: of names, labels and bytes.

Reading a large set takes a while, so its digest is kept beside the decoded sets, under the digest of its listing.
Nothing is read again as long as no file is added, removed, renamed or written; writing changes a file's size or change
time. A change that the file system does not record goes unnoticed.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from tqdm import tqdm

from dst.data.dataset import DataError
from dst.data.files import Files, listing_digest
from dst.data.listing import unusable
from dst.files import file_sha256, sha256, write_or_keep

_LOG = logging.getLogger(__name__)
_READERS: Final = 8
_READ_AT_ONCE: Final = 64
_TICK_NS: Final = 2_000_000_000
"""The coarsest clock of a file system: a file that changes twice within it can keep its change time."""


def files_digest(name: str, train: Files, test: Files, cache: Path) -> str:
    """Return the SHA-256, in hex, of the files of a set, from a note in the ``cache`` folder if there is one.

    Raises ``DataError`` that names all files that cannot be read.
    """
    began = time.time_ns()
    listing = listing_digest(train, test)
    note = cache / f"{name}-{listing[:16]}.content"
    known = _noted(note, listing)
    if known is not None:
        return known
    found = _read(name, train, test)
    if max(int(part.stamps[:, 1].max()) for part in (train, test)) < began - _TICK_NS:
        write_or_keep(partial(_write, note, listing, found))
    return found


def _read(name: str, train: Files, test: Files) -> str:
    total, problems = hashlib.sha256(), []
    with tqdm(total=len(train) + len(test), desc=f"{name}: digest", unit="image", disable=None, leave=False) as bar:
        for part in (train, test):
            total.update(f"{len(part)} files\n".encode())
            for found, label, file in zip(_sums(part), part.labels.tolist(), part.names, strict=True):
                if isinstance(found, OSError):
                    problems.append(f"{part.root / os.fsdecode(bytes(file))} ({found.strerror})")
                total.update(f"{found} {label} ".encode() + bytes(file) + b"\0")
                bar.update()
    if problems:
        raise unusable(problems)
    return total.hexdigest()


def _sums(files: Files) -> Iterator[str | OSError]:
    """Yield the SHA-256 of each file. Threads read them: most time is spent on waiting for the disk."""

    def of_some(low: int) -> list[str | OSError]:
        return [_sum(files.path(number)) for number in range(low, min(low + _READ_AT_ONCE, len(files)))]

    with ThreadPoolExecutor(_READERS) as readers:
        for some in readers.map(of_some, range(0, len(files), _READ_AT_ONCE)):
            yield from some


def _sum(path: Path) -> str | OSError:
    try:
        return file_sha256(path)
    except OSError as error:
        return error


def check_unchanged(*parts: Files) -> None:
    """Raise DataError if a file has changed since it was listed: it may have been decoded in another state."""
    for files in parts:
        for number, stamp in enumerate(files.stamps.tolist()):
            path = files.path(number)
            try:
                about = path.stat()
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            if stamp != [about.st_size, about.st_ctime_ns]:
                raise DataError(f"{path} changed while the set was read: start again when nothing writes there")


# ---------------------------------------------------------------------------------------------------------------------
# Notes of what was read once


def _noted(note: Path, listing: str) -> str | None:
    """Return the digest in a note; None if there is no note, or a damaged one, or one of another listing."""
    try:
        found, seal = note.read_text().split()
    except (OSError, ValueError):
        return None
    return found if seal == _seal(listing, found) else None


def _write(note: Path, listing: str, found: str) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{found} {_seal(listing, found)}\n")  # half a note has no seal
    except OSError as error:
        _LOG.warning("cannot note the digest of the data in %s (%s); it is read again each time", note, error)


def _seal(listing: str, found: str) -> str:
    return sha256(f"{listing} {found}")
