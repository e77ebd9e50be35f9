"""What a run tells a tracker. The record is the truth; a tracker mirrors it and can neither change nor stop a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run when it begins. ``id``: the name of its folder, attempt suffix included."""

    id: str
    name: str
    group: str
    tags: Sequence[str]
    folder: Path
    attempt: int
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Somewhere that a run is mirrored to. No method raises because of trouble there."""

    def begin(self, facts: RunFacts) -> None:
        """Begin, or go on with, the mirror of a run."""
        ...

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Mirror one line of the history."""
        ...

    def layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the latest counts of all layers; the last ones told become the table at the end."""
        ...

    def finish(self, summary: Mapping[str, Any], state: str) -> None:
        """End the mirror with the final figures (none if there are none) and the state that the run ended in."""
        ...


class Untracked:
    """Mirror nothing."""

    def begin(self, facts: RunFacts) -> None:
        """Do nothing."""

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any], state: str) -> None:
        """Do nothing."""


def tracker(
    *,
    mode: str,
    project: str | None,
    entity: str | None,
    tags: Sequence[str],
    notes: str | None,
    timeout_s: float,
) -> Tracker:
    """Return the tracker for ``mode``: ``none``, or wandb ``offline`` or ``online``."""
    if mode == "none":
        return Untracked()
    from dst.tracking.wandb_mirror import WandbMirror

    return WandbMirror(mode=mode, project=project or "dst", entity=entity, tags=tags, notes=notes, timeout_s=timeout_s)
