"""Requests to stop: the handler only sets a flag, and the loop reads it at step boundaries."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from dst.signals import FATAL, REQUESTS, KilledError, give_up, interrupt_if_asked

_PATIENCE_S = 15.0
_AGAIN_S = 5.0
_POKE = signal.SIGUSR2


class StopRequestedError(Exception):
    """The run stopped on request after saving; ``signal_name``: the signal that asked for it."""

    def __init__(self, signal_name: str, step: int) -> None:
        self.signal_name, self.step = signal_name, step
        super().__init__(f"stopped by {signal_name} after step {step}; run the same command to continue")


class StopFlag:
    """A context in which SIGTERM, SIGINT, SIGUSR2 and SIGHUP set ``requested``; a second SIGINT acts as outside.

    If the program waits for data some time after the first request, it is pulled out of that by StalledError. Other
    signals that would end the process raise KilledError. A signal that was ignored before stays ignored: ``nohup``
    relies on that to let a run outlive its terminal.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}
        self._is_poked = False
        self._is_over = threading.Event()
        self._poker: threading.Thread | None = None

    def __enter__(self) -> Self:
        interrupt_if_asked()
        heard = [number for number in REQUESTS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._set) for number in heard}
        deadly = [number for number in FATAL if signal.getsignal(number) == signal.SIG_DFL]
        self._previous |= {number: signal.signal(number, _killed) for number in deadly}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        if self._poker is not None:
            self._poker.join()  # what it sends after the handlers are gone would end the process
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == _POKE and self._is_poked:
            self._is_poked = False
            give_up()
            return
        if self._poker is None:
            self._poker = threading.Thread(target=self._poke, daemon=True)
            self._poker.start()
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])

    def _poke(self) -> None:
        """Have the handler look now and then, in the main thread, whether the program waits for what never comes."""
        patience = _PATIENCE_S
        while not self._is_over.wait(patience):
            self._is_poked, patience = True, _AGAIN_S
            signal.pthread_kill(threading.main_thread().ident or 0, _POKE)


def _killed(number: int, frame: FrameType | None) -> None:
    raise KilledError(f"killed by {signal.Signals(number).name}")
