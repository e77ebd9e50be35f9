"""The steps of a run that has not begun: a pure function of its phases, for forecasts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dst.sparsity import Sparsifier
from dst.training.phase import Action, Phase


class PlannedStep(NamedTuple):
    """A step as far as it is known before training.

    ``begins_epoch``: it is the first of its ``epoch``; ``begins_anew``: weights are changed by something else than a
    step before it. ``samples``: of its batch. ``active``: the active weights of each layer in scope. ``is_replaced``: a
    topology update comes instead; ``dense_gradient``: it needs the gradients of inactive weights.
    """

    epoch: int
    begins_epoch: bool
    begins_anew: bool
    samples: int
    active: Mapping[str, int]
    is_replaced: bool
    dense_gradient: bool


def planned_steps(phases: Sequence[Phase], sparsifier: Sparsifier, batch_sizes: Sequence[int]) -> Iterator[PlannedStep]:
    """Yield all steps of all phases; ``batch_sizes``: those of an epoch, in order.

    ``sparsifier``: before the first step. If weights move between layers or the density falls, each layer is assumed to
    keep its share; else the numbers are exact.
    """
    active: Mapping[str, int] = sparsifier.topology.active_by_layer
    at_first, density, step = dict(active), sparsifier.density, 0

    def after(action: Action | None) -> None:
        """Go on with what an action leaves."""
        nonlocal active, at_first, density
        left = active if action is None else action.leaves(active, sparsifier)
        if left != active:
            active, at_first, density = left, dict(left), sum(left.values()) / sparsifier.topology.size

    for phase in phases:
        after(phase.begin)
        update = phase.update
        for phase_step in range(1, phase.steps + 1):
            epoch, i = divmod(step, len(batch_sizes))
            begins_anew = phase_step == 1 and phase.begin is not None
            if update is None:
                yield PlannedStep(epoch, i == 0, begins_anew, batch_sizes[i], active, False, False)
            else:
                due = update.plan.due(phase_step)
                dense = update.reads_dense_gradient(due=due)
                is_replaced = due and update.replaces_step
                yield PlannedStep(epoch, i == 0, begins_anew, batch_sizes[i], active, is_replaced, dense)
                if due and update.density_curve is not None:
                    share = update.density_curve(phase_step) / density
                    active = (
                        at_first if share >= 1 else {name: max(1, round(share * n)) for name, n in at_first.items()}
                    )
            step += 1
        after(phase.end)
