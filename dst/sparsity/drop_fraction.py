"""How much: drop fractions as pure functions of the step.

Each factory takes the update plan and its own options and returns a curve ``step -> fraction``.
"""

import math

from dst.fractions import Curve
from dst.sparsity.plan import UpdatePlan


def constant(plan: UpdatePlan, *, initial: float) -> Curve:
    """Drop the same fraction at every update."""
    return lambda step: initial


def cosine(plan: UpdatePlan, *, initial: float, floor: float = 0.0, horizon: str = "end") -> Curve:
    """Anneal from ``initial`` to ``floor``: ``floor + (initial - floor) (1 + cos(pi t / T)) / 2`` (RigL, ITOP)."""
    steps = _horizon_steps(plan, horizon)
    return lambda step: floor + (initial - floor) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def linear(plan: UpdatePlan, *, initial: float, floor: float = 0.0, horizon: str = "end") -> Curve:
    """Decrease from ``initial`` to ``floor`` along a straight line."""
    steps = _horizon_steps(plan, horizon)
    return lambda step: initial + (floor - initial) * min(step / steps, 1.0)


def _horizon_steps(plan: UpdatePlan, horizon: str) -> int:
    """Return the step T at which a curve ends: that of training, or that of the updates."""
    steps = {"end": plan.total_steps, "stop": plan.stop_step}
    if horizon not in steps:
        raise ValueError(f"horizon={horizon!r}: allowed are {', '.join(steps)}")
    return steps[horizon]
