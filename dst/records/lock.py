"""A lock for run folders, so that each has one writer. It names its holder, ends with it, and is taken over when stale.

Two signs are combined. An ``flock`` ends with its process at once, and on most cluster file systems all nodes see it.
On the others the heartbeat counts: the holder touches the file every few seconds. If the file has not been touched for
long enough, its node is gone.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

NAME: Final = "lock"
HEARTBEAT_S: Final = 5.0
STALE_S: Final = 60.0
"""After this time without a heartbeat a lock is stale, if nothing else says whether its holder lives."""

_WATCH_S: Final = 0.5

_ORPHANS_S: Final = 5.0
"""How long the child processes of a killed holder may keep the ``flock`` before they notice."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. ``job``: the SLURM or local job that it belongs to, if any."""

    host: str
    pid: int
    job: str | None = None

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")


def this_host() -> str:
    """Return the name of this host, by which records and locks tell hosts apart."""
    return socket.gethostname()


_UNKNOWN: Final = Holder("unknown", 0)
"""The holder of a lock whose content is damaged."""


class LockedError(RuntimeError):
    """Another process holds the lock."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.holder = holder
        super().__init__(f"run {folder.name} is running already: {holder or 'by an unknown process'}")


@contextmanager
def locked(folder: Path, job: str | None = None) -> Iterator[None]:
    """Hold the lock of a run folder, with a heartbeat; LockedError if another process has it, OSError."""
    path = folder / NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(handle, folder)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(Holder(this_host(), os.getpid(), job))).encode(), 0)
        over = threading.Event()
        beats = threading.Thread(target=_beat, args=(path, over), daemon=True)
        beats.start()
        try:
            yield
        finally:
            over.set()
            beats.join()
            os.ftruncate(handle, 0)
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: forked loader processes hold the file, too
    finally:
        os.close(handle)


def holder(folder: Path) -> Holder | None:
    """Return the holder of a run folder's lock, as far as this host can tell; None if no live process holds it."""
    found = _read(folder)
    if found is None or not _may_live(folder, found):
        return None
    if found.host != this_host():
        return found
    try:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        is_free = _flock(handle)
        return None if is_free or (is_free is None and not _beats(folder)) else found
    finally:
        os.close(handle)


def _acquire(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + _ORPHANS_S
    while (is_ours := _flock(handle)) is False:
        found = _read(folder)
        if (found is not None and _may_live(folder, found)) or time.monotonic() > deadline:
            raise LockedError(folder, found)
        time.sleep(0.1)
    found = _read(folder)
    if found is None or (is_ours and found.host == this_host()):  # we have its flock, so it is dead
        return
    # Here the flock does not tell. If the holder has just died, no further heartbeat comes: wait and see.
    path = folder / NAME
    touched = path.stat().st_mtime_ns
    while _may_live(folder, found) and _beats(folder):
        if path.stat().st_mtime_ns != touched:
            raise LockedError(folder, found)
        time.sleep(_WATCH_S)


def _flock(handle: int) -> bool | None:
    """Take the ``flock`` if it is free and return whether it was; None if the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return None
    return True


def _may_live(folder: Path, found: Holder) -> bool:
    """Say whether a holder may be alive: judged by its process on this host, by its heartbeat on another."""
    if found.host == this_host():
        try:
            os.kill(found.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    return _beats(folder)


def _beats(folder: Path) -> bool:
    return _age(folder / NAME) < STALE_S


def _age(path: Path) -> float:
    """Return how many seconds ago a file was touched, by the clock of its file system: clocks of hosts differ."""
    probe = path.with_name(f".clock.{this_host()}.{os.getpid()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
    except OSError:  # a read-only folder
        now = time.time()
    return now - path.stat().st_mtime


def _read(folder: Path) -> Holder | None:
    """Return the holder that the lock file names; None if it names none, ``_UNKNOWN`` if it is damaged."""
    try:
        text = (folder / NAME).read_bytes()
        found = Holder(**json.loads(text))
    except OSError:
        return None
    except (ValueError, TypeError, RecursionError):
        return _UNKNOWN if text else None
    is_whole = isinstance(found.host, str) and type(found.pid) is int and isinstance(found.job, str | None)
    return found if is_whole and 0 < found.pid < 2**31 else _UNKNOWN


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)
