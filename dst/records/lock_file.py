"""The file that a lock is: whom it names, and when its holder last touched it."""

import json
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

NAME: Final = "lock"

_LONGEST: Final = 4096
"""The most bytes that are read of a lock."""

_MOST_TURNS: Final = 10**9

_KINDS: Final = {stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. ``job``: the SLURM or local job that it belongs to, if any.

    ``since``: unix time by its own clock. ``turn``: counts those that have taken the lock over from one that died.
    """

    host: str
    pid: int
    job: str | None = None
    since: float | None = field(default=None, compare=False)
    turn: int = field(default=0, compare=False)

    def __str__(self) -> str:
        told = f"host {self.host}, process {self.pid}" + (f", job {self.job}" if self.job else "")
        return told if self.since is None else f"{told}, since {time.strftime('%F %T', time.localtime(self.since))}"


UNKNOWN: Final = Holder("unknown", 0)
"""The holder of a lock whose content is damaged."""


def this_host() -> str:
    """Return the name of this host, by which records and locks tell hosts apart."""
    return socket.gethostname()


def open_lock(folder: Path, flags: int) -> int:
    """Open the lock of a folder; OSError, saying what is there, if it is no file: a link may lead to another's lock."""
    path = folder / NAME
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if (kind := _kind(path)) is not None:
            raise OSError(error.errno, f"{path} is a {kind}, and no lock: remove it") from error
        raise
    if (kind := _kind(handle)) is not None:
        os.close(handle)
        raise OSError(f"{path} is a {kind}, and no lock: remove it")
    return handle


def read_holder(folder: Path) -> Holder | None:
    """Return the holder that a lock names; None if it names none, ``UNKNOWN`` if it is damaged."""
    content = _content(folder)
    if content is None or content.keys() == {"turn"}:
        return None
    try:
        found = Holder(**content)
    except TypeError:
        return UNKNOWN
    return found if _is_whole(found) else UNKNOWN


def read_turn(folder: Path) -> int:
    """Return the number of the last turn that a lock tells of, that of its holder or an earlier one; 0 if of none."""
    turn = (_content(folder) or {}).get("turn")
    return turn if type(turn) is int and 0 <= turn < _MOST_TURNS else 0


def _content(folder: Path) -> dict[str, Any] | None:
    """Return what a lock says, empty if it is damaged; None if it says nothing, or is none."""
    try:
        handle = open_lock(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(handle, _LONGEST)
        content = json.loads(text) if text else None
    except OSError:
        return None
    except (ValueError, RecursionError):
        return {}
    finally:
        os.close(handle)
    return content if isinstance(content, dict | None) else {}


def write_holder(handle: int, holder: Holder) -> None:
    """Let an open lock name its holder."""
    _write(handle, json.dumps(asdict(holder)).encode())


def write_none(handle: int, turn: int) -> None:
    """Let an open lock name nobody, after a turn."""
    _write(handle, json.dumps({"turn": turn}).encode() if turn else b"")


def _write(handle: int, data: bytes) -> None:
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))


def age(path: Path) -> float:
    """Return how many seconds ago a file was touched, by the clock of its file system: clocks of hosts differ.

    It is negative if that clock was set back since, or if somebody has set the file's time.
    """
    probe = path.with_name(f".clock.{this_host()}.{os.getpid()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:  # a read-only folder
        now = time.time()
    with suppress(OSError):
        probe.unlink(missing_ok=True)
    return now - path.stat().st_mtime


def _kind(file: Path | int) -> str | None:
    """Return what a path or an open file is, if it is no regular file; None if it is, or if there is none."""
    try:
        kind = stat.S_IFMT((os.fstat(file) if isinstance(file, int) else os.lstat(file)).st_mode)
    except OSError:
        return None
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "device")


def _is_whole(found: Holder) -> bool:
    is_named = isinstance(found.host, str) and type(found.pid) is int and isinstance(found.job, str | None)
    is_dated = isinstance(found.since, float | int | None) and type(found.turn) is int and 0 <= found.turn < _MOST_TURNS
    return is_named and is_dated and 0 < found.pid < 2**31 and (found.since is None or 0 <= found.since < 2**33)
