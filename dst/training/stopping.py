"""Requests to stop: the handler only sets a flag, and the loop reads it at step boundaries."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from dst.signals import REQUESTS, interrupt_if_asked


class StopRequestedError(Exception):
    """The run stopped on request after saving; ``signal_name``: the signal that asked for it."""

    def __init__(self, signal_name: str, step: int) -> None:
        self.signal_name, self.step = signal_name, step
        super().__init__(f"stopped by {signal_name} after step {step}; run the same command to continue")


class StopFlag:
    """A context in which SIGTERM, SIGINT, SIGUSR2 and SIGHUP set ``requested``; a second SIGINT acts as outside.

    A signal that was ignored before stays ignored: ``nohup`` relies on that to let a run outlive its terminal.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        interrupt_if_asked()
        heard = [number for number in REQUESTS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._set) for number in heard}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])
