"""Indexes: what was found out about the many runs in a folder, so that the next look need not find it out again.

A folder with ``WORTH`` runs or more gets ``.index/<kind>.json``. An index is never believed: each entry has the stamps
of the files that it was made from, and whoever uses it compares them with what ``stat`` says now. A stamp holds what
cannot be set by hand (the time at which the inode changed, which the file system writes), so a file that was replaced,
edited in place or copied is told from the one that was read, whatever its size and its time say.

Within one tick of the file system's clock a file may change twice. So nothing is kept of a file that had changed just
before it was read: it has to be older than ``_SETTLED_NS`` by the clock of its file system (clocks of hosts differ).

An index that is torn, damaged or of another version is none. Each is replaced atomically and needs no lock: if several
processes write one, the last one wins, and what the others knew is found out again. Where none can be written (a
read-only folder, a full disk) the work goes on without. It may be removed at any time.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from dst.files import replacing, sha256

PLACE: Final = ".index"
"""The hidden folder of indexes within a folder of runs."""

WORTH: Final = 16
"""So many runs in a folder, or so many new ones among them, make an index worth its file."""

_FORMAT: Final = 1
_SETTLED_NS: Final = 2_000_000_000
"""Some file systems keep times in seconds only."""

Stamp = list[int]
"""What tells a file from every other and from itself at another time: inode, size, both times of change."""


def stamp(found: os.stat_result) -> Stamp:
    """Return the stamp of a file or folder. The device is left out: hosts number them as they like."""
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def changed_ns(of: Stamp) -> int:
    """Return when a file was changed last."""
    return max(of[2:])


def load(group: str, kind: str, version: str) -> Any:
    """Return what the index of a folder of runs holds; None if there is none that is whole and of this version."""
    try:
        head, _, body = Path(group, PLACE, f"{kind}.json").read_bytes().partition(b"\n")
        return json.loads(body) if head == _head(version, body) else None
    except (OSError, ValueError, RecursionError):
        return None


def save(group: str, kind: str, version: str, began: float, content: Callable[[int], Any]) -> None:
    """Write the index of a folder of runs, if that is possible.

    ``content``: what it shall hold, given the time before which a file must have changed last to be kept. ``began``:
    ``time.monotonic`` before the first file was looked at.
    """
    path = Path(group, PLACE, f"{kind}.json")
    with suppress(OSError, RecursionError):  # it may not be written, or nests too deep; the next look takes as long
        path.parent.mkdir(exist_ok=True)
        with replacing(path, durable=False) as (file,):
            now = os.fstat(file.fileno()).st_mtime_ns  # by the clock of the file system
            then = now - int((time.monotonic() - began) * 1e9)
            body = json.dumps(content(then - _SETTLED_NS), separators=(",", ":")).encode()
            file.write(_head(version, body) + b"\n" + body)


def pays(new: int, known: int) -> bool:
    """Say whether to write an index again: the more it knows, the more must be new."""
    return new >= max(WORTH, known // 20)


def present(group: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return those entries whose folders are still there."""
    names = set(os.listdir(group))
    return {name: entry for name, entry in known.items() if name in names}


def _head(version: str, body: bytes) -> bytes:
    """Return the first line: by it a torn or damaged index is noticed, and one that other code has made."""
    return f"dst index {_FORMAT} {version} {sha256(body)}".encode()
