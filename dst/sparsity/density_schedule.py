"""How dense at step t: densities of the whole network as pure functions of the step.

Each factory takes the update plan, the final density and its own options and returns a curve ``step -> density``.
"""

from dst.fractions import Curve, step_at
from dst.sparsity.plan import UpdatePlan


def cubic(
    plan: UpdatePlan, final: float, *, initial: float = 1.0, start: float = 0.0, end: float, ends_early: bool = False
) -> Curve:
    """Fall from ``initial`` to ``final`` along ``d_f + (d_i - d_f) (1 - (k - k0) / (k1 - k0))^3`` (Zhu & Gupta 2018).

    ``k`` counts updates; ``k0`` and ``k1`` are those at the fractions ``start`` and ``end`` of training, ``k1`` at most
    the last update that takes place. From ``k1`` on the density is exactly ``final``. ``ends_early``: the last pruning
    is that of ``k1 - 1``, as in the published GraNet, so that the density stays ``(d_i - d_f) / (k1 - k0)^3`` above
    ``final``. Raises ValueError if there is no update between the two, or if the density would not fall.
    """
    if not 0 < final < initial <= 1:
        raise ValueError(f"density_schedule: need 0 < final < initial <= 1, got final={final}, initial={initial}")
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
        return final + (initial - final) * (1 - max(k - first, 0) / (last - first)) ** 3

    return curve
