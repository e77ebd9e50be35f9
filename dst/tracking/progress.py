"""Progress of a run: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tqdm import tqdm

from dst.tracking.pulse import Pulse

_LINES = 10
"""About how many plain lines a whole run prints."""


class Progress(Protocol):
    """A display of the training loop's progress."""

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        ...

    def show(self, values: Mapping[str, str]) -> None:
        """Show the latest figures, already formatted."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


def progress(mode: str, total: int, start: int) -> Progress:
    """Return the display for ``mode`` (auto, bar, plain, none) of a run of ``total`` steps that begins at ``start``."""
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() else "plain"
    displays: dict[str, Callable[[int, int], Progress]] = {"bar": Bar, "plain": Lines, "none": NoProgress}
    return displays[mode](total, start)


class NoProgress:
    """Show nothing."""

    def __init__(self, total: int, start: int) -> None:
        self._total = total

    def advance(self, step: int) -> None:
        """Do nothing."""

    def show(self, values: Mapping[str, str]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Bar:
    """A tqdm bar with rate, ETA and the latest figures."""

    def __init__(self, total: int, start: int) -> None:
        self._bar = _OnlyBar(total=total, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(step - self._bar.n)

    def show(self, values: Mapping[str, str]) -> None:
        """Show the figures behind the bar."""
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class _OnlyBar(tqdm):  # type: ignore[type-arg]  # which it has for type checkers only
    """A bar on a terminal of any number of rows, since there is no other bar that it would have to make room for.

    A terminal whose size nobody has set has 0 rows, and there tqdm would hide its bar for good. Its times are those of
    a clock that nobody sets: by tqdm's own a bar stands still, and shows negative times, once that is set back.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar."""
        self.nrows = None
        super().display(msg, pos)


class Lines:
    """About ten plain lines a run, for logs: the first one as soon as there are figures, and one a minute at least."""

    def __init__(self, total: int, start: int) -> None:
        self._total, self._step = total, start
        self._start, self._began = start, time.monotonic()
        self._printed = start * _LINES // total
        self._values: Mapping[str, str] = {}
        self._pulse = Pulse(self._print)

    def advance(self, step: int) -> None:
        """Remember the step."""
        self._step = step

    def show(self, values: Mapping[str, str]) -> None:
        """Remember the figures; print them if they are the first, or if another tenth of the run is done."""
        reached, are_first = self._step * _LINES // self._total, not self._values
        self._values = values
        if reached > self._printed or are_first:
            self._printed = reached
            self._pulse.told()
            self._print()

    def close(self) -> None:
        """Print no line any more."""
        self._pulse.close()

    def _print(self) -> None:
        figures = f"  {_joined(self._values)}" if self._values else ""
        print(f"  step {self._step}/{self._total}  {self._eta()}{figures}", flush=True)

    def _eta(self) -> str:
        done, seconds = self._step - self._start, time.monotonic() - self._began
        left = seconds / max(done, 1) * (self._total - self._step)
        return f"ETA {tqdm.format_interval(left)}"


def _joined(values: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())
