"""Limits that the system sets to a process, set by tests."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dst import files


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size in bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let files that are to replace others lie on a device that is full; the one that is to be written has no room."""

    def on_full(path: Path) -> Path:
        partial = path.with_name(f".{path.name}.tmp")
        os.symlink("/dev/full", partial)
        return partial

    own, files._own_name = files._own_name, on_full
    try:
        yield
    finally:
        files._own_name = own
