"""Progress on the terminal while a run goes on, and the mirror of its record."""

from dst.options import checked
from dst.tracking.options import Mode, Timeout
from dst.tracking.tracker import NoTracker, Tracker


@checked
def tracker(mode: Mode, timeout_s: Timeout) -> Tracker:
    """Return the tracker for ``mode``; only ``online`` sends while a run trains."""
    if mode != "online":
        return NoTracker()
    from dst.tracking.mirror import WandbMirror

    return WandbMirror(timeout_s)
