"""Bounds of what is read into memory: what is larger is refused with its size, before memory is filled."""

import gzip
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from dst.data.dataset import DataError
from dst.files import size

MOST_BYTES: Final = 256 << 20
"""The largest file of an image, or of a set that is published as a few files, packed or not."""

MOST_PIXELS: Final = 178_956_970
"""The largest image, 512 MiB as it is decoded: Pillow opens no larger ones, which may be made to fill the memory."""

_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file, unpacked if its name ends in ``.gz``; ``DataError`` if there is more than that.

    A file that cannot be read, or unpacked, raises what Python does.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if (packed := os.fstat(file.fileno()).st_size) > most:
            raise DataError(f"{path} has {size(packed)}, more than the {size(most)} that such a file may have")
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path} unpacks to more than the {size(most)} that such a file may have")
    return content


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for an image that is too large to be decoded."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"its header says {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}; scale it down")


def memory() -> int:
    """Return the bytes of memory that this process may use at most: those of the machine, or of its control group."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # no such limit, or "max"
            found.append(int(Path(limit).read_text()))
    return min(found)


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raise DataError if something takes more memory than there is."""
    if needed > (there := memory()):
        raise DataError(f"{what} takes {size(needed)} of memory, and {size(there)} are here: {remedy}")
