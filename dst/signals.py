"""Signals of the operating system. Standard library only."""

import ctypes
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

REQUESTS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""The signals that ask a run to stop. They may go to its whole process group."""


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
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)
