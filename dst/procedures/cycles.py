"""The learning rate, and when the topology is updated, in cycles that follow the method's ordinary run."""

from dataclasses import dataclass, replace

from dst.fractions import Curve
from dst.options import refuse
from dst.procedures.options import still_problems, unfrozen_problems
from dst.sparsity.marks import marks_of
from dst.sparsity.options import Part, drop_problems
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.update import TopologyUpdate


@dataclass(kw_only=True)
class CyclePlan(UpdatePlan):
    """Update on the first step if the cycle ``re_explores``; if updates go on (``goes_on``), also as a plan says."""

    re_explores: bool
    goes_on: bool

    def due(self, step: int) -> bool:
        """Say whether the topology is updated at this step of the cycle (counted from 1)."""
        return (self.re_explores and step == 1) or (self.goes_on and super().due(step))

    def updates(self) -> int:
        """Return the number of updates in a cycle."""
        planned = super().updates() if self.goes_on else 0
        return planned + int(self.re_explores and not (self.goes_on and super().due(1)))


def cycle_update(
    update: TopologyUpdate | None, steps: int, *, re_explore: float | None, freeze_updates: bool
) -> TopologyUpdate | None:
    """Return how the topology is updated in cycles of ``steps``, by the same drop and grow; None if it is not.

    ``update``: that of the ordinary run. ``re_explore``: what an update on the first step drops; None: there is none.
    Unless ``freeze_updates``, updates go on every so many steps of a cycle, with the last drop fraction of the ordinary
    run. OptionError if nothing would move although it should.
    """
    if update is None or update.drop is None:
        refuse(still_problems(re_explore, freeze_updates, "the method"))
        return None
    last, plan = update.drop_fraction(update.plan.total_steps), update.plan
    if re_explore is not None:
        refuse(drop_problems(Part("this drop", marks_of(update.drop)), [f"re_explore={re_explore}"]))
    if not freeze_updates:
        updates = (steps if plan.on_last_step else steps - 1) // plan.every
        refuse(unfrozen_problems(updates, plan.every, steps, last))
    elif re_explore is None:
        return None
    times = vars(plan) | {"start": 0.0, "stop": 1.0, "total_steps": steps}
    return replace(
        update,
        plan=CyclePlan(**times, re_explores=re_explore is not None, goes_on=not freeze_updates),
        drop_fraction=_drop_fraction(re_explore, last),
        density_curve=None,
        prune_pool="global",
    )


def _drop_fraction(re_explore: float | None, last: float) -> Curve:
    return lambda step: re_explore if re_explore is not None and step == 1 else last


def triangular(steps: int, at_ticket: float, mid_cycle: float) -> Curve:
    """Return a rate that goes along straight lines from ``at_ticket`` to ``mid_cycle`` and back, over ``steps``."""

    def rate(step: int) -> float:
        u = step / steps
        share = 2 * u if u < 0.5 else 2 - 2 * u
        return at_ticket * (1 - share) + mid_cycle * share

    return rate


def constant(rate: float) -> Curve:
    """Return a rate that stays."""
    return lambda step: rate
