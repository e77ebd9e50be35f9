"""Trackers mirror a run while it trains. The record is the truth: a tracker can neither change nor stop a run."""

from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """A mirror of a run's record. No method raises because of trouble with the mirror, or waits for it."""

    def begin(self, folder: Path) -> None:
        """Begin or continue the mirror of the run in a folder."""
        ...

    def poll(self) -> None:
        """Print what is wrong with the mirror, if anything."""
        ...

    def finish(self) -> None:
        """End the mirror, once the record says how the run ended. Only this may take a while."""
        ...


class NoTracker:
    """Mirror nothing."""

    def begin(self, folder: Path) -> None:
        """Do nothing."""

    def poll(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""
