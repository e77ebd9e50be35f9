"""Who mirrors a run while it trains. The record is the truth; a tracker can neither change nor stop a run."""

from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Somewhere that the record of a run is mirrored to. No method raises because of trouble there, or waits for it."""

    def begin(self, folder: Path) -> None:
        """Begin, or go on with, the mirror of the run that has its record in a folder."""
        ...

    def look(self) -> None:
        """See how the mirror fares."""
        ...

    def finish(self) -> None:
        """End the mirror, once the record says how the run ended; this alone may take a while."""
        ...


class NoTracker:
    """Mirror nothing."""

    def begin(self, folder: Path) -> None:
        """Do nothing."""

    def look(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""
