"""When the topology is updated, and how an update meets the optimizer."""

from dataclasses import dataclass, field
from typing import Annotated

from dst.fractions import step_at
from dst.options import OptionError, Range, require
from dst.sparsity.options import Every, Update


class NoUpdateError(OptionError):
    """A plan without any update: training is too short for one."""


@dataclass(kw_only=True)
class UpdatePlan(Update):
    """Update after each ``every`` steps, from ``start`` to ``stop`` (fractions of ``total_steps``, ends included).

    Steps count from 1. What the fields mean is said in ``dst.sparsity.options``; ValueError for what they cannot be,
    NoUpdateError for a plan without any update.
    """

    every: Every = field()
    total_steps: Annotated[int, Range(1), "steps of the phase that the updates belong to"]

    def __post_init__(self) -> None:
        require(self)
        if self.updates() == 0:
            raise NoUpdateError(
                f"every={self.every}: there is no update in all {self.total_steps} steps, which allow updates from "
                f"step {self.start_step} to {self.last_step}; update more often, or train longer"
            )

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
