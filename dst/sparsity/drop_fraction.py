"""How much: drop fractions as pure functions of the step.

Each factory takes the update plan and its own options and returns a curve ``step -> fraction``.
"""

import math
from typing import Annotated

from dst.fractions import Curve
from dst.options import OneOf, Range, checked
from dst.sparsity.plan import UpdatePlan

Initial = Annotated[float, Range(0, 1, "(]"), "the share of a layer's active weights that moves at the beginning"]
Floor = Annotated[float, Range(0, "initial"), "the share that moves at the horizon"]
Horizon = Annotated[str, OneOf("end", "stop"), "where the curve ends; end: with training; stop: with the updates"]


@checked
def constant(plan: UpdatePlan, *, initial: Initial) -> Curve:
    """Drop the same fraction at every update."""
    return lambda step: initial


@checked
def cosine(plan: UpdatePlan, *, initial: Initial, floor: Floor = 0.0, horizon: Horizon = "end") -> Curve:
    """Anneal from ``initial`` to ``floor``: ``floor + (initial - floor) (1 + cos(pi t / T)) / 2`` (RigL, ITOP)."""
    steps = _horizon_steps(plan, horizon)
    return lambda step: floor + (initial - floor) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


@checked
def linear(plan: UpdatePlan, *, initial: Initial, floor: Floor = 0.0, horizon: Horizon = "end") -> Curve:
    """Decrease from ``initial`` to ``floor`` along a straight line."""
    steps = _horizon_steps(plan, horizon)
    return lambda step: initial + (floor - initial) * min(step / steps, 1.0)


def _horizon_steps(plan: UpdatePlan, horizon: str) -> int:
    """Return the step T at which a curve ends: that of training, or that of the updates."""
    return {"end": plan.total_steps, "stop": plan.stop_step}[horizon]
