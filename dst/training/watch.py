"""When to save and when to stop: asked after every step, answered alike in all processes."""

import time

from dst.training.distributed import Processes
from dst.training.settings import Settings
from dst.training.stopping import StopFlag, StopRequestedError


class Watch:
    """Remembers when the run was saved last, and looks whether somebody asks it to stop."""

    def __init__(self, settings: Settings, processes: Processes, stop: StopFlag) -> None:
        self._settings, self._processes, self._stop = settings, processes, stop
        self._saved = time.monotonic()

    def look(self, step: int) -> tuple[bool, bool]:
        """Return whether it is time to save after a step, and whether to stop."""
        every = self._settings.checkpoint_every_steps
        due = every is not None and step % every == 0
        late = time.monotonic() - self._saved >= self._settings.checkpoint_every_s
        stopping, late = self._processes.agree(self._stop.requested is not None, late and self._processes.is_main)
        return due or late or stopping, stopping

    def saved(self) -> None:
        """Note that the run has just been saved."""
        self._saved = time.monotonic()

    def stopped(self, step: int) -> StopRequestedError:
        """Return the error that ends the run; all processes call this."""
        return StopRequestedError(self._processes.any_name(self._stop.requested) or "a request", step)
