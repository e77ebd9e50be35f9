"""When the topology is updated, and how an update meets the optimizer."""

from dataclasses import dataclass

from dst.fractions import step_at

ORDERS = ("after_step", "replaces_step")
GROWN = ("zero", "initial")
RETURNING = ("keep", "reset")


@dataclass(frozen=True)
class UpdatePlan:
    """Update after each ``every`` steps, from ``start`` to ``stop`` (fractions of ``total_steps``, ends included).

    Steps count from 1. ``order``: ``after_step`` updates after the optimizer step (ITOP, GraNet), ``replaces_step``
    instead of it (RigL). ``regrow``: just-dropped weights may return in the same update. ``on_last_step``: update also
    after the last step, when nothing can be learned any more (as the published ITOP code does). ``grown_weights``
    start from ``zero`` or from their ``initial`` value, in any case without optimizer state; ``returning_weights``,
    dropped and grown in the same update, ``keep`` value and state (ITOP, GraNet) or are ``reset`` as if grown.
    """

    every: int
    total_steps: int
    start: float = 0.0
    stop: float = 1.0
    order: str = "after_step"
    regrow: bool = True
    on_last_step: bool = False
    grown_weights: str = "zero"
    returning_weights: str = "keep"

    def __post_init__(self) -> None:
        choices = {"order": ORDERS, "grown_weights": GROWN, "returning_weights": RETURNING}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.every < 1 or self.total_steps < 1:
            raise ValueError(f"every={self.every} and total_steps={self.total_steps} must be at least 1")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"need 0 <= start < stop <= 1, got start={self.start}, stop={self.stop}")

    @property
    def start_step(self) -> int:
        """The first step that may have an update."""
        return step_at(self.start, self.total_steps)

    @property
    def stop_step(self) -> int:
        """The step from which on there are no updates, for curves that end with the updates."""
        return step_at(self.stop, self.total_steps)

    @property
    def last_step(self) -> int:
        """The last step that may have an update."""
        return min(self.stop_step, self.total_steps if self.on_last_step else self.total_steps - 1)

    def due(self, step: int) -> bool:
        """Say whether the topology is updated at this step (counted from 1)."""
        return step % self.every == 0 and self.start_step <= step <= self.last_step

    def updates(self) -> int:
        """Return the number of updates in the whole training."""
        return max(0, self.last_step // self.every - max(self.start_step - 1, 0) // self.every)
