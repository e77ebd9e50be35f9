"""What is shown goes through streams that survive whatever becomes of the terminal, so that no run ends with it.

Standard output and error are replaced once, in ``program``, which holds for every ``print``, progress bar, warning,
traceback and log line, of ours and of libraries. Who reads may go away, the disk under a log may be full, an encoding
may lack a character, a stream may be closed from the beginning: what cannot be shown is dropped, and the run goes on.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TextIO

_NEVER_FAIL: Final = ("ignore", "replace", "backslashreplace", "xmlcharrefreplace", "namereplace")
"""What can be done, by Python's names for it, about characters that an encoding lacks without raising an error."""


def program(main: Callable[[], int], *, shows: bool = True) -> int:
    """Carry out a program with streams that survive, and return its exit code.

    ``shows``: to show something is what it is for, so that it has failed if that is lost, to a full disk for example.
    """
    secure()
    code = main()
    code = code or (shown() if shows else 0)
    if _leaves_at_once:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


_leaves_at_once = False


def leave_at_once() -> None:
    """Let ``program`` end this process without Python's own end, in which threads of a library may crash."""
    global _leaves_at_once
    _leaves_at_once = True


def secure() -> None:
    """Replace the standard streams of this process by ones that survive, if they are still those it began with.

    A descriptor that is closed is given to the null device: otherwise the next file that is opened, perhaps a
    checkpoint, would get its number, and all that is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _fill(number)
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        sys.stdout, sys.stderr = _surviving(1, sys.stdout), _surviving(2, sys.stderr)


def shown() -> int:
    """Return the exit code of having shown something: 1 if it was lost, unless to a reader who had seen enough."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    lost = getattr(getattr(buffer, "raw", buffer), "lost", None)
    if lost is None or lost.errno == errno.EPIPE:
        return 0
    print(f"error: what was to be shown could not be written: {lost.strerror}", file=sys.stderr)
    return 1


class _Unbreakable(io.FileIO):
    """The lowest layer of a stream: writing to it never fails. ``lost``: what went wrong first, if anything did."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the bytes, or as much as can be; return their number whatever was written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # it does not block, and is full
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[written:]
        except OSError as error:
            self.lost = self.lost or error
            if error.errno == errno.EPIPE:  # for good: a process started from here would be killed by writing to it
                _fill(self.fileno())
        return size


def _surviving(number: int, old: TextIO | None) -> io.TextIOWrapper:
    """Return a stream to a descriptor that treats text as the ``old`` one did, as far as that cannot fail."""
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
    """Let a descriptor lead to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)
