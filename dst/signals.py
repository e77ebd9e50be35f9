"""Signals of the operating system, and how a program answers Ctrl-C. Standard library only.

Python turns Ctrl-C into KeyboardInterrupt wherever the program is: in an import, in a callback that swallows it, or
about to leave. ``answer_interrupts`` lets the first one do so, to clean up, and a further one end the process at once;
each with one line and a known exit code, never with a traceback.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, NoReturn

REQUESTS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""The signals that ask a run to stop. They may go to its whole process group."""

INTERRUPTED: Final = 130
"""Exit code of a program that Ctrl-C ended before it had saved."""


@contextmanager
def blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread, and for good in the processes that it starts within the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_PR_SET_PDEATHSIG: Final = 1


def stop_with(parent: int) -> None:
    """Have this process asked to stop (SIGTERM) as soon as its parent process is gone, also if that was killed.

    ``parent``: the process that started it, which may be gone already. Linux can do so, other systems only that.
    """
    _ask_at_the_end_of_its_parent(signal.SIGTERM)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def die_with_parent() -> None:
    """Let the system kill this process when its parent dies, on Linux."""
    _ask_at_the_end_of_its_parent(signal.SIGKILL)


def _ask_at_the_end_of_its_parent(number: signal.Signals) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


# -- waiting for what may never come -----------------------------------------------------------------------------------


class StalledError(Exception):
    """A request to stop was heard long ago, and the program still waits; see ``waiting``."""


class KilledError(Exception):
    """A signal came that ends a program; the message names it."""


FATAL: Final = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGXCPU)
"""The signals that end a program and can be heard, beside the requests."""

_is_waiting = False


@contextmanager
def waiting() -> Iterator[None]:
    """Mark a block that waits for other processes or files, which may never answer: ``give_up`` raises in it."""
    global _is_waiting
    _is_waiting = True
    try:
        yield
    finally:
        _is_waiting = False


def give_up() -> None:
    """Raise StalledError if the program is waiting; called by the handler of a signal."""
    if _is_waiting:
        raise StalledError("no data came")


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


class _Interrupts:
    """What Ctrl-C does in the process ``owner``; ``pending``: one was raised and has not ended the program yet."""

    def __init__(self, owner: int = 0, told: str = "") -> None:
        self.owner = owner
        self.pending = False
        self.is_held, self.was_held = False, False
        self.code = INTERRUPTED
        self.told = told

    def answer(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt the first time, and end the process the next time or once its end is settled."""
        if os.getpid() != self.owner:  # a child that does not know yet what it will do with it
            os._exit(INTERRUPTED)
        if self.is_held:
            self.was_held = True
            return
        if self.pending:
            self.leave()
        self.pending = True
        raise KeyboardInterrupt

    def leave(self) -> NoReturn:
        """Say the one line, without Python's streams, which may be in use, and end the process."""
        if self.told:
            with suppress(OSError):
                os.write(2, f"{self.told}\n".encode("ascii", "backslashreplace"))
        os._exit(self.code)


_interrupts = _Interrupts()


def answer_interrupts(told: str) -> None:
    """Let Ctrl-C end this program with one line, ``told``, whatever it does; ``settle`` says otherwise later.

    Not where it is no program of its own: in an interactive session, in a thread, or where Ctrl-C is ignored.
    """
    global _interrupts
    is_guest = hasattr(sys, "ps1") or threading.current_thread() is not threading.main_thread()
    if is_guest or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    _interrupts = _Interrupts(os.getpid(), told)
    atexit.register(_deafen)
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, _interrupts.answer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C wait until the end of this block. To block the signal is not enough: another thread would get it."""
    _interrupts.is_held = True
    try:
        yield
    finally:
        _interrupts.is_held = False
        if _interrupts.was_held:
            _interrupts.was_held = False
            _interrupts.answer(signal.SIGINT, None)


def settle(code: int, told: str = "") -> None:
    """Let Ctrl-C end the program at once with this code and line from now on: what it had to do is done."""
    if _interrupts.owner == os.getpid():
        _interrupts.code, _interrupts.told, _interrupts.pending = code, told, True


def interrupt_if_asked() -> None:
    """Raise KeyboardInterrupt again if an earlier one was swallowed on its way, as some libraries do in an import."""
    if _interrupts.pending and _interrupts.owner == os.getpid():
        raise KeyboardInterrupt


def _unraisable(found: Any) -> None:
    """End the program for a KeyboardInterrupt that Python cannot raise, in a callback or a destructor."""
    if issubclass(found.exc_type, KeyboardInterrupt) and _interrupts.owner == os.getpid():
        _interrupts.leave()
    if "due to race condition" not in str(found.exc_value):  # a Ctrl-C just before ``_deafen``
        sys.__unraisablehook__(found)


def _deafen() -> None:
    """Let no Ctrl-C disturb the very end of Python, when handlers are gone; registered first, it is called last."""
    if _interrupts.owner == os.getpid():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
