"""Learning rates as pure functions of the number of steps already taken."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from dst.fractions import Curve, step_at
from dst.options import Each, Range, checked, require
from dst.training.options import Peak


@dataclass(frozen=True)
class LRPlan:
    """The numbers that every curve needs: the ``peak`` rate, and the lengths of training and warm-up in steps."""

    peak: Peak
    total_steps: Annotated[int, Range(1), "steps of the whole training"]
    warmup_steps: Annotated[int, Range(0, "total_steps", "[)"), "steps in which the rate rises to its peak"] = 0

    def __post_init__(self) -> None:
        require(self)


def constant(plan: LRPlan) -> Curve:
    """Keep the peak rate."""
    return _warmed_up(plan, lambda step: plan.peak)


@checked
def cosine(plan: LRPlan, *, floor: Annotated[float, Range(0, "peak"), "the rate at the end"] = 0.0) -> Curve:
    """Fall from the peak after the warm-up to ``floor`` at the end along half a cosine (Loshchilov & Hutter 2017)."""
    length = plan.total_steps - plan.warmup_steps

    def curve(step: int) -> float:
        progress = (step - plan.warmup_steps) / length
        return floor + (plan.peak - floor) * (1 + math.cos(math.pi * progress)) / 2

    return _warmed_up(plan, curve)


@checked
def multistep(
    plan: LRPlan,
    *,
    milestones: Annotated[
        Sequence[float], Each(Range(0, 1, "()"), least=1, order="<"), "fractions of training at which the rate falls"
    ],
    gamma: Annotated[float, Range(0, 1, "(]"), "the rate is multiplied by it at each milestone"] = 0.1,
) -> Curve:
    """Multiply the rate by ``gamma`` at each milestone, a fraction of training."""
    steps = [step_at(milestone, plan.total_steps) for milestone in milestones]
    return _warmed_up(plan, lambda step: plan.peak * gamma ** bisect_right(steps, step))


def _warmed_up(plan: LRPlan, curve: Curve) -> Curve:
    """Rise linearly over the warm-up, to the peak at its last step, then follow the curve."""
    return lambda step: plan.peak * (step + 1) / plan.warmup_steps if step < plan.warmup_steps else curve(step)
