"""How dense at step t: densities of the whole network as pure functions of the step.

Each factory takes the update plan, the final density and its own options and returns a curve ``step -> density``.
"""

from typing import Annotated

from dst.fractions import Curve, step_at
from dst.options import Range, checked, refuse
from dst.sparsity.options import Density, ramp_problems
from dst.sparsity.plan import UpdatePlan


@checked
def cubic(
    plan: UpdatePlan,
    density: Density,
    *,
    initial: Annotated[float, Range("density", 1, "(]"), "the density at the beginning"] = 1.0,
    start: Annotated[float, Range(0, "end", "[)"), "the density falls from this fraction of training"] = 0.0,
    end: Annotated[float, Range(0, 1, "(]"), "the density has its final value from this fraction of training on"],
    ends_early: Annotated[bool, "stop one update short of the final value, as the published GraNet"] = False,
) -> Curve:
    """Fall from ``initial`` to ``density`` along ``d_f + (d_i - d_f) (1 - (k - k0) / (k1 - k0))^3`` (Zhu & Gupta 2018).

    ``k`` counts updates; ``k0`` and ``k1`` are those at the fractions ``start`` and ``end`` of training, ``k1`` at most
    the last update that takes place. From ``k1`` on the density is exactly that. ``ends_early``: the last pruning
    is that of ``k1 - 1``, as in the published GraNet, so that the density stays ``(d_i - d_f) / (k1 - k0)^3`` above
    ``density``. Raises ValueError if there is no update between the two, if they are not within the time of updates, or
    if the density would not fall.
    """
    refuse(ramp_problems(start, end, plan), "cubic")
    first, last = (step_at(fraction, plan.total_steps) // plan.every for fraction in (start, end))
    if not ends_early:
        last = min(last, plan.last_step // plan.every)
    if last <= first:
        raise ValueError(
            f"density_schedule: no update between start={start} and end={end} of training, with one every {plan.every} "
            f"of {plan.total_steps} steps; widen the window or update more often"
        )

    def curve(step: int) -> float:
        k = min(step // plan.every, last - 1 if ends_early else last)
        return density + (initial - density) * (1 - max(k - first, 0) / (last - first)) ** 3

    return curve
