"""A lock for run folders, so that each has one writer. It names its holder, ends with it, and is taken over when stale.

Two signs are combined. An ``flock`` ends with its process at once, and on most cluster file systems all nodes see it.
On the others the heartbeat counts: the holder touches the file every few seconds. If the file has not been touched for
long enough, its node is gone. There a file that one process alone can make, ``lock.<turn>``, says whose turn it is. A
holder that was only suspended, or that started at the same time, finds that another one is named (``Lock.check``).
"""

import errno
import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from dst.records.lock_file import (
    NAME,
    UNKNOWN,
    Holder,
    age,
    open_lock,
    read_holder,
    read_turn,
    this_host,
    write_holder,
    write_none,
)

__all__ = ["HEARTBEAT_S", "STALE_S", "Holder", "Lock", "LockLostError", "LockedError", "holder", "locked", "this_host"]

HEARTBEAT_S: Final = 5.0
STALE_S: Final = 60.0
"""After this time without a heartbeat a lock is stale, if nothing else says whether its holder lives."""

_WATCH_S: Final = 0.5

_ORPHANS_S: Final = 5.0
"""How long the child processes of a killed holder may keep the ``flock`` before they notice."""

_CLAIM: Final = re.compile(rf"{NAME}\.(?P<turn>\d{{1,9}})")


class LockedError(RuntimeError):
    """Another process holds the lock."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.holder = holder
        told = f"run {folder.name} is being run by {holder or 'an unknown process'}"
        super().__init__(told + _hint(folder, holder))


class LockLostError(OSError):
    """Another process has taken the lock over while this one was suspended, or cut off from the file system."""


class Lock:
    """A lock that this process holds."""

    def __init__(self, folder: Path, handle: int, own: Holder) -> None:
        self._folder, self._handle, self._own = folder, handle, own

    @property
    def is_own(self) -> bool:
        """Say whether nobody else has taken it over, nor made another one in its place."""
        with suppress(OSError):  # it is gone, or cannot be seen now: neither is a sign of another process
            if not os.path.samestat(os.fstat(self._handle), os.stat(self._folder / NAME)):
                return False
        found, turn = read_holder(self._folder), read_turn(self._folder)
        return found in (None, UNKNOWN, self._own) and turn <= self._own.turn

    def check(self) -> None:
        """Raise LockLostError if another process has it by now: what this one writes would spoil the other's record."""
        if not self.is_own:
            raise LockLostError(
                f"run {self._folder.name} is being run by {read_holder(self._folder) or 'another process'}, which took "
                f"it over: this process ({self._own.pid}) had shown no sign of life, or its lock was removed"
            )

    def beat(self, over: threading.Event) -> None:
        """Touch it every few seconds until it is over."""
        while not over.wait(HEARTBEAT_S) and self.is_own:
            with suppress(OSError):
                os.utime(self._handle)

    def leave(self) -> None:
        """Name no holder any more, unless another process is named."""
        with suppress(OSError):  # what was done under it is done, and its process will be gone
            if self.is_own:
                write_none(self._handle, self._own.turn)
                _claim(self._folder, self._own.turn).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, job: str | None = None) -> Iterator[Lock]:
    """Hold the lock of a run folder, with a heartbeat; LockedError if another process has it, OSError."""
    handle = open_lock(folder, os.O_RDWR | os.O_CREAT)
    try:
        own = _acquire(handle, folder, Holder(this_host(), os.getpid(), job, time.time()))
        write_holder(handle, own)
        lock, over = Lock(folder, handle, own), threading.Event()
        beats = threading.Thread(target=lock.beat, args=(over,), daemon=True)
        beats.start()
        try:
            yield lock
        finally:
            over.set()
            beats.join()
            lock.leave()
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: forked loader processes hold the file, too
    finally:
        os.close(handle)


def holder(folder: Path) -> Holder | None:
    """Return the holder of a run folder's lock, as far as this host can tell; None if no live process holds it."""
    found = read_holder(folder)
    if found is None or not _may_live(folder, found):
        return None
    if found.host != this_host():
        return found
    try:
        handle = open_lock(folder, os.O_RDWR)
    except OSError:
        return found
    try:
        is_free = _flock(handle)
        return None if is_free or (is_free is None and not _beats(folder)) else found
    finally:
        os.close(handle)


# -- taking it ---------------------------------------------------------------------------------------------------------


def _acquire(handle: int, folder: Path, own: Holder) -> Holder:
    """Wait until nobody else holds the lock, and return its new holder; LockedError if somebody goes on holding it."""
    deadline = time.monotonic() + _ORPHANS_S
    while (is_ours := _flock(handle)) is False:
        found = read_holder(folder)
        if (found is not None and _may_live(folder, found)) or time.monotonic() > deadline:
            raise LockedError(folder, found)
        time.sleep(0.1)
    found = read_holder(folder)
    is_foreign = found is not None and not (is_ours and found.host == this_host())  # else we have its flock: it is dead
    if found is not None and is_foreign:
        _outwait(folder, found)
    # One that was only cut off, on a host with an flock of its own, learns by the turn that another one has been here.
    turn = read_turn(folder) + is_foreign if is_ours else _take_turn(folder, found)
    return replace(own, turn=turn)


def _outwait(folder: Path, found: Holder) -> None:
    """Wait for a further heartbeat where the ``flock`` does not tell: if the holder has just died, none comes.

    The time is this process's own: that of the file may lie in the future.
    """
    path = folder / NAME
    touched, left = path.stat().st_mtime_ns, STALE_S - max(age(path), 0.0)
    if left > 0 and _is_there(found):
        _tell(found, path, round(left))
    deadline = time.monotonic() + left
    while time.monotonic() < deadline and _is_there(found):
        time.sleep(min(_WATCH_S, max(0.0, deadline - time.monotonic())))
        now = read_holder(folder)
        if now is None:  # it has just ended
            return
        if now != found or path.stat().st_mtime_ns != touched:
            raise LockedError(folder, now)


@cache
def _tell(found: Holder, path: Path, left: int) -> None:
    """Say, once, whom this process waits for."""
    told = f"waiting for {found}, which holds {path}: for {left} s, unless it shows a sign of life"
    print(told, file=sys.stderr, flush=True)


def _take_turn(folder: Path, found: Holder | None) -> int:
    """Take the next turn where there is no ``flock``, and return its number; LockedError if another process has it.

    ``found``: the holder that is known to be dead; None if there is none.
    """
    last, now = read_turn(folder), read_holder(folder)
    claims = sorted(int(match["turn"]) for name in os.listdir(folder) if (match := _CLAIM.fullmatch(name)))
    if now not in (None, found) or (claims and claims[-1] > last and _is_fresh(_claim(folder, claims[-1]))):
        raise LockedError(folder, now)  # its maker is about to write its name
    turn = max([last, *claims]) + 1
    try:
        os.close(os.open(_claim(folder, turn), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise LockedError(folder, read_holder(folder)) from error
    if read_turn(folder) >= turn:  # another process has had this very turn meanwhile
        _claim(folder, turn).unlink(missing_ok=True)
        raise LockedError(folder, read_holder(folder))
    for old in claims:
        with suppress(OSError):
            _claim(folder, old).unlink()
    return turn


def _is_fresh(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return abs(age(path)) < STALE_S
    return False


def _claim(folder: Path, turn: int) -> Path:
    return folder / f"{NAME}.{turn}"


# -- signs of life -----------------------------------------------------------------------------------------------------


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
    return _is_there(found) if found.host == this_host() else _beats(folder)


def _is_there(found: Holder) -> bool:
    """Say whether a holder's process is there, as far as this host can tell."""
    if found.host == this_host():
        try:
            os.kill(found.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return True


def _beats(folder: Path) -> bool:
    """Say whether the last heartbeat is of now. One of the future is not: of a live holder the next would be of now."""
    return abs(age(folder / NAME)) < STALE_S


def _hint(folder: Path, found: Holder | None) -> str:
    """Return what to do if the holder of an ``flock`` shows no sign of life, since its host may be gone; or nothing."""
    if found is None or _may_live(folder, found):
        return ""
    return f", without a sign of life for {max(age(folder / NAME), 0.0):.0f} s: if it is gone, remove {folder / NAME}"
