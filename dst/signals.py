"""Signals of the operating system. Standard library only."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
