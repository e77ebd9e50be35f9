"""Standard streams that survive the end of the terminal, so that no run ends with it.

``program`` replaces standard output and error once. This covers every ``print``, progress bar, warning, traceback and
log line, ours and those of libraries. The reader may go away, the disk under a log may be full, an encoding may lack a
character, a stream may be closed from the beginning: what cannot be shown is dropped, and the run goes on.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TextIO

from dst.signals import INTERRUPTED, answer_interrupts, held, settle

_NEVER_FAIL: Final = ("ignore", "replace", "backslashreplace", "xmlcharrefreplace", "namereplace")
"""Python's error handlers that raise nothing for characters that an encoding lacks."""


def program(main: Callable[[], int], *, shows: bool = True) -> int:
    """Carry out a program with streams that survive, and return its exit code; Ctrl-C ends it with one line.

    ``shows``: its purpose is to show something, so it has failed if that is lost, for example on a full disk.
    """
    try:
        answer_interrupts(_SHOWING if shows else _WORKING)
        secure()
        code = main()
        code = code or (shown() if shows else 0)
        settle(code)  # threads of libraries may still have to end
    except TypeError as error:
        from dst.registry import DeclarationError

        if not isinstance(error, DeclarationError):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = _WRONG
    except KeyboardInterrupt as interrupt:
        with held():
            print(str(interrupt) or (_SHOWING if shows else _WORKING), file=sys.stderr, flush=True)
            settle(code := INTERRUPTED)
    if _leaves_at_once:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


_SHOWING: Final = "interrupted"
_WORKING: Final = "interrupted; the same command goes on from what was saved"

_WRONG: Final = 2
"""Exit code where an option is not declared as it should be, in the code of an extension."""

_leaves_at_once = False


def leave_at_once() -> None:
    """Let ``program`` end this process without Python's finalization, in which threads of a library may crash."""
    global _leaves_at_once
    _leaves_at_once = True


def secure() -> None:
    """Replace the standard streams of this process by ones that survive, unless they were replaced already.

    A closed descriptor is opened on the null device. Otherwise the next file that is opened, perhaps a checkpoint,
    would get its number, and with it everything that is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _fill(number)
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        sys.stdout, sys.stderr = _surviving(1, sys.stdout), _surviving(2, sys.stderr)


def shown() -> int:
    """Return the exit code after showing something: 1 if it was lost, unless the reader went away."""
    error = lost()
    if error is None or error.errno == errno.EPIPE:
        return 0
    print(f"error: the output could not be written: {error.strerror}", file=sys.stderr)
    return 1


def lost() -> OSError | None:
    """Return why standard output shows nothing any more, None if it does: who shows more and more can end then."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    found = getattr(getattr(buffer, "raw", buffer), "lost", None)
    return found if isinstance(found, OSError) else None


class _Unbreakable(io.FileIO):
    """The lowest layer of a stream: writing to it never fails. ``lost``: the first error, if any."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write the bytes, or as many as possible; return their number in every case."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # a stream that does not block is full
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[written:]
        except OSError as error:
            self.lost = self.lost or error
            if error.errno == errno.EPIPE:  # for good: writing to it would kill processes that are started from here
                _fill(self.fileno())
        return size


def _surviving(number: int, old: TextIO | None) -> io.TextIOWrapper:
    """Return a stream to a descriptor that treats text as the ``old`` one did, but never fails."""
    raw = _Unbreakable(number, "w", closefd=False)
    if not isinstance(old, io.TextIOWrapper):  # it was closed when the process began
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")
    with suppress(OSError):
        old.flush()
    buffer: Any = raw if old.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=old.encoding,
        errors=old.errors if old.errors in _NEVER_FAIL else "backslashreplace",
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def _fill(number: int) -> None:
    """Open a descriptor on the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)
