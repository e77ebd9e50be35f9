"""Signs of life in a log: a line at once for what a command does, and another one whenever a minute was silent."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

SILENCE_S: Final = 60.0
"""The longest time without a line."""


class Pulse:
    """Calls ``tell``, in a thread, whenever nothing was told for so long."""

    def __init__(self, tell: Callable[[], None], silence_s: float | None = None) -> None:
        self._tell, self._silence = tell, SILENCE_S if silence_s is None else silence_s
        self._told = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="pulse", daemon=True).start()

    def told(self) -> None:
        """Note that something was told just now."""
        self._told = time.monotonic()

    def close(self) -> None:
        """Tell nothing any more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._told + self._silence - time.monotonic())):
            if time.monotonic() - self._told >= self._silence:
                self.told()
                with suppress(Exception):  # a display, which must not end anything
                    self._tell()


_starting: Pulse | None = None


def starting(what: str | None, mode: str = "auto", *, at_once: bool = True) -> None:
    """Tell what the command does before it trains, and again while it lasts; None: it trains, or has ended.

    ``mode``: the progress that was asked for, of which ``none`` is silent; not ``at_once``: only if it takes long.
    """
    global _starting
    if _starting is not None:
        _starting.close()
        _starting = None
    if what is None or mode == "none":
        return
    began = time.monotonic()

    def tell() -> None:
        minutes = round((time.monotonic() - began) / 60)
        print(f"still {what} ({minutes} min)", file=sys.stderr, flush=True)

    if at_once:
        print(f"{what} ...", file=sys.stderr, flush=True)
    _starting = Pulse(tell)
