"""Progress on the terminal while a run goes on, and the mirror of its record."""

from dst.tracking.tracker import NoTracker, Tracker


def tracker(mode: str, timeout_s: float) -> Tracker:
    """Return the tracker for ``mode``; only ``online`` sends while a run trains."""
    if mode != "online":
        return NoTracker()
    from dst.tracking.mirror import WandbMirror

    return WandbMirror(timeout_s)
