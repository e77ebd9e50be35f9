"""Files: written whole or not at all, and known by their digest. Standard library only."""

import errno
import hashlib
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Final


class OtherContentError(ValueError):
    """A file that holds something else than it should."""


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(
    *paths: Path, durable: bool = True, shared: bool = True, needed: int = 0, new: bool = False
) -> Iterator[list[BufferedRandom]]:
    """Give a file to fill for each path; at the end of the block they replace what is there, in this order.

    Readers, and a crash at any moment, see the old content of a file or the new, never a part. All new content is
    complete before the first file is replaced. If anything fails, no temporary file is left behind.

    ``durable``: wait until content and names are on the disk; otherwise the new content may be lost if the machine (not
    only the process) goes down soon. ``shared``: other processes may replace the same paths at the same time, so the
    temporary files get names of their own; otherwise they are ``<name>.tmp``, and what a kill has left of an earlier
    one is overwritten. All paths lie in one folder. ``needed``: the bytes of all, as far as it is known before; a full
    disk is told with them (``telling_space``). ``new``: nothing may be there; FileExistsError if another process made a
    file of that name, however shortly before.
    """
    partials = [_own_name(path) if shared else path.with_name(f"{path.name}.tmp") for path in paths]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(partial.open("w+b")) for partial in partials]
            yield files
            for file in files:
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        for partial, path in zip(partials, paths, strict=True):
            (_add if new else os.replace)(partial, path)
    except BaseException as error:
        for partial in partials:
            with suppress(OSError):
                needed = max(needed, partial.stat().st_size)
                partial.unlink()
        with telling_space(paths[0], needed):
            raise error
    if durable:
        sync_folder(paths[0].parent)


def _add(partial: Path, path: Path) -> None:
    """Give a file its name; FileExistsError if there is one of that name."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.replace(partial, path)
    else:
        partial.unlink()


_WORTH_S: Final = 60.0
"""What took longer to find out is written in any case: nobody wants to wait for it twice."""


@dataclass
class _Block:
    """A block whose writes are kept back, and when it began."""

    began: float
    kept: list[Callable[[], None]] = field(default_factory=list)

    @property
    def has_worth(self) -> bool:
        return time.monotonic() - self.began >= _WORTH_S


_block: _Block | None = None


@contextmanager
def kept_back() -> Iterator[None]:
    """Keep back what ``write_or_keep`` is given until the end of the block; write nothing if it ends by an error.

    Unless the block took a minute or more: from then on all is written at once, since a kill would lose it.
    """
    global _block
    before, is_refused = _block, True
    own = _block = _Block(time.monotonic())
    try:
        yield
        is_refused = False
    finally:
        _block = before
        if not is_refused or own.has_worth:
            for write in own.kept:
                write_or_keep(write)


def write_or_keep(write: Callable[[], None]) -> None:
    """Write now, or at the end of the block in which it is kept back.

    For notes and caches of what was read: a command that is refused leaves nothing behind.
    """
    if _block is None or _block.has_worth:
        write()
    else:
        _block.kept.append(write)


def replace_text(path: Path, text: str, *, durable: bool = True, new: bool = False) -> None:
    """Replace the content of a file by a text, in UTF-8; see ``replacing``."""
    data = text.encode()
    with replacing(path, durable=durable, needed=len(data), new=new) as (file,):
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; syncing a file does not do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- users -------------------------------------------------------------------------------------------------------------


def of_another(path: Path, error: OSError) -> str:
    """Return whose a path is and what would help, if an error says that this user may not write there; or nothing."""
    there = _there(path)
    owner = there.stat().st_uid
    if error.errno not in (errno.EACCES, errno.EPERM) or owner == os.geteuid():
        return ""
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"user {owner}"
    return f": {there} belongs to {name}, who has to let the group write (umask 002); or choose another output.root"


# -- space -------------------------------------------------------------------------------------------------------------

_FULL: Final = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up"}


@contextmanager
def telling_space(path: Path, needed: int = 0) -> Iterator[None]:
    """Let an error of a full disk say on which one, how much a file there needs, and how much is free.

    ``needed``: in bytes, at least; 0 if it is not known. Other errors pass as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        wants = f": {path.name} needs {size(needed)} or more, {size(space(path))} are free" if needed else ""
        raise OSError(error.errno, f"{_FULL[error.errno]} on {_disk(path)}{wants}") from error


def space(path: Path) -> int:
    """Return the bytes that this user may still write where a path is or would be."""
    return shutil.disk_usage(_there(path)).free


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    count /= 1024
    return f"{count:.1f} TiB"


def _there(path: Path) -> Path:
    """Return the nearest folder or file at or above a path that exists."""
    return next((above for above in (path, *path.absolute().parents) if above.exists()), Path("/"))


def _disk(path: Path) -> Path:
    """Return where the file system of a path is mounted."""
    there = _there(path).resolve()
    return next(above for above in (there, *there.parents) if above.is_mount())


def _own_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


# -- digests -----------------------------------------------------------------------------------------------------------


def sha256(content: bytes | str) -> str:
    """Return the SHA-256 (hex) of bytes, or of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(file: Path | BufferedReader | BufferedRandom) -> str:
    """Return the SHA-256 (hex) of a file, or of what follows in an open one; read in pieces, however large it is."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return file_sha256(opened)
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_verified(path: Path, digest: str | None) -> bytes:
    """Return the content of a file, read once; OtherContentError unless its SHA-256 (hex) is ``digest``, if given."""
    content = path.read_bytes()
    found = sha256(content)
    if digest not in (None, found):
        raise OtherContentError(f"{path} has the digest {found}, but {digest} was asked for: it has been changed")
    return content
