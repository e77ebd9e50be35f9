"""Rules of procedures. Needs no torch, so that configs are checked without it."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, log
from typing import Final

from dst.fractions import exact
from dst.options import Names, refuse


@dataclass(frozen=True)
class Budget:
    """How the epochs of a run are divided: those of pretraining, then ``cycles`` of ``cycle_epochs`` each."""

    pretrain_epochs: int
    cycles: int
    cycle_epochs: int


def budget(epochs: int, *, cycle_rate: float, cycle_epochs: int, pretrain_epochs: int | None = None) -> Budget:
    """Return how ``epochs`` are divided into pretraining and whole cycles; OptionError if that cannot be.

    With ``pretrain_epochs`` all other epochs are those of cycles. Without, cycles have the whole epochs of the fraction
    ``cycle_rate``, of which pretraining gets what is left over by whole cycles (Sup-tickets, Yin et al. 2022).
    """
    refuse(budget_problems(epochs, cycle_rate=cycle_rate, cycle_epochs=cycle_epochs, pretrain_epochs=pretrain_epochs))
    cycles = _cyclic(epochs, cycle_rate, pretrain_epochs) // cycle_epochs
    return Budget(epochs - cycles * cycle_epochs, cycles, cycle_epochs)


def budget_problems(
    epochs: int, *, cycle_rate: float, cycle_epochs: int, pretrain_epochs: int | None = None, called: Names = str
) -> Iterator[str]:
    """Yield why ``epochs`` cannot be divided into pretraining and whole cycles, and what would do."""
    left = _cyclic(epochs, cycle_rate, pretrain_epochs)
    cycle = f"{called('cycle_epochs')}={cycle_epochs}"
    if pretrain_epochs is not None:
        if left > 0 and left % cycle_epochs == 0:
            return
        fitting = range(epochs - cycle_epochs, 0, -cycle_epochs)
        mend = (
            f"e.g. {called('pretrain_epochs')}={min(fitting, key=lambda number: abs(number - pretrain_epochs))}"
            if fitting
            else f"train for more than {cycle_epochs} epochs, or choose shorter cycles"
        )
        yield (
            f"{called('pretrain_epochs')}={pretrain_epochs}: leaves {max(left, 0)} of {epochs} epochs for cycles, "
            f"which is no positive multiple of {cycle}; {mend}"
        )
    elif left < cycle_epochs:
        rate = ceil(Fraction(10_000 * cycle_epochs, epochs)) / 10_000  # rounded up, so that it is enough
        mends = [f"{called('cycle_epochs')}={left} or less"] if left else []
        mends += [f"{called('cycle_rate')}={rate} or more"] if rate < 1 else []
        mends.append(f"{ceil(cycle_epochs / exact(cycle_rate))} epochs or more")
        yield (
            f"{cycle}: of {epochs} epochs {called('cycle_rate')}={cycle_rate} leaves {left} for cycles, less than one; "
            f"choose {', or '.join(mends)}"
        )


def _cyclic(epochs: int, cycle_rate: float, pretrain_epochs: int | None) -> int:
    """Return how many epochs cycles may have; below zero if pretraining alone has more than there are."""
    return int(exact(cycle_rate) * epochs) if pretrain_epochs is None else epochs - pretrain_epochs


def superposing_problems(of: Budget, include_pretrained: bool, called: Names = str) -> Iterator[str]:
    """Yield that there would be a single network to superpose."""
    if of.cycles == 1 and not include_pretrained:
        yield (
            f"{called('include_pretrained')}=false: leaves a single network to superpose, since there is one cycle of "
            f"{called('cycle_epochs')}={of.cycle_epochs}; use {called('include_pretrained')}=true, or shorter cycles"
        )


def whole_epochs_problems(wanted: int, steps: int) -> Iterator[str]:
    """Yield that training ends within an epoch, so that the last cycle would not be whole."""
    if steps != wanted:
        yield f"steps={steps}: cycles consist of whole epochs, so that training needs all {wanted} steps; leave it out"


def batch_norm_problems(batch_norm: str, has_batch_norm: bool, called: Names = str) -> Iterator[str]:
    """Yield that there are no statistics that the option could be about."""
    if batch_norm != "reestimate" and not has_batch_norm:
        yield f"{called('batch_norm')}={batch_norm} would be ignored: the model has no batch norm. Use reestimate"


def still_problems(re_explore: float | None, freeze_updates: bool, method: str, called: Names = str) -> Iterator[str]:
    """Yield what is asked of cycles in which nothing can move, since a ``method`` drops and grows nothing."""
    why = f"{method} drops and grows nothing"
    if re_explore is not None:
        yield f"{called('re_explore')}={re_explore} would be ignored: {why}. Use {called('re_explore')}=null"
    if not freeze_updates:
        yield f"{called('freeze_updates')}=false: unfrozen cycles in which nothing would move, since {why}. Use true"


def unfrozen_problems(updates: int, every: int, steps: int, drop_fraction: float, called: Names = str) -> Iterator[str]:
    """Yield why nothing would move in unfrozen cycles of ``steps``, with an update ``every`` so many."""
    told = f"{called('freeze_updates')}=false: unfrozen cycles in which nothing would move, since"
    if updates == 0:
        yield (
            f"{told} a cycle has {steps} steps and its first update would come after {every}, with a step to follow: "
            f"update more often, let cycles be longer, or use {called('freeze_updates')}=true"
        )
    if drop_fraction == 0:
        yield (
            f"{told} they go on with the last drop fraction of pretraining, which is 0: choose one that ends above 0 "
            f"(its floor), or {called('freeze_updates')}=true"
        )


# -- levels of pruning -------------------------------------------------------------------------------------------------

_MOST_LEVELS: Final = 1000


def counts_after_levels(active: int, maskable: int, density: float, keep: float) -> list[int]:
    """Return how many weights each level of pruning leaves, of ``active`` ones at first and ``maskable`` in all.

    Level j keeps ``active * keep^j``, and the last one exactly ``round(density * maskable)``: the first level that
    would leave less than a weight more than that is the last, so that counts which were rounded make no further one.
    That is ``ceil(ln(density / first density) / ln keep)`` levels. OptionError if there cannot be such levels.
    """
    refuse(levels_problems(active, maskable, density, keep))
    return _counts(active, round(density * maskable), keep)


def _counts(active: int, end: int, keep: float) -> list[int]:
    found, left = [], active * exact(keep)
    while left >= end + 1:
        found.append(round(left))
        left *= exact(keep)
    return [*found, end]


def start_problems(start: float, density: float, called: Names = str) -> Iterator[str]:
    """Yield that the density at the ``start`` leaves nothing to prune."""
    if start <= density:
        yield (
            f"{called('density')}={density}: must be less than the density at the start, {start:.4g}, or there would "
            "be nothing to prune: choose a smaller one, or start denser"
        )


def levels_problems(active: int, maskable: int, density: float, keep: float, called: Names = str) -> Iterator[str]:
    """Yield why levels of pruning cannot lead from ``active`` weights of ``maskable`` to the ``density``."""
    end = round(density * maskable)
    if active <= end:
        yield from start_problems(min(active / maskable, density), density, called)
    elif log(max(end, 1) / active) / log(keep) > _MOST_LEVELS:
        yield f"{called('keep')}={keep}: would take more than {_MOST_LEVELS} levels to {called('density')}={density}"
    else:
        counts = [active, *_counts(active, end, keep)]
        still = [j for j, (before, after) in enumerate(pairwise(counts), 1) if before == after]
        if still:
            yield (
                f"{called('keep')}={keep}: level {still[0]} would prune none of its {counts[still[0]]} weights: keep "
                "fewer"
            )


def rewind_problems(rewind: str, rewind_epoch: int | None, level_epochs: int, called: Names = str) -> Iterator[str]:
    """Yield that weights would go back to an epoch that the first level does not come to, or to none that is named."""
    told, most = f"{called('level_epochs')}={level_epochs}", level_epochs - 1
    mend = f"choose {'1' if most == 1 else f'1 to {most}'}, or longer levels" if most else "let levels be longer"
    if rewind == "epoch" and rewind_epoch is None:
        yield f"{called('rewind_epoch')} is missing: {called('rewind')}=epoch needs it; with {told} {mend}"
    elif rewind == "epoch" and rewind_epoch is not None and rewind_epoch >= level_epochs:
        yield (
            f"{called('rewind_epoch')}={rewind_epoch}: would rewind to an epoch that was never trained before the end "
            f"of the first level, which has {told}; {mend}"
        )


# -- levels of annealing -----------------------------------------------------------------------------------------------


def annealed(start: float, target: float, levels: int, most: float) -> list[float]:
    """Return the density of each level, from ``start`` to ``target`` (Gadhikar et al. 2023).

    ``k`` begins at ``start``; before each level ``k <- max(target, min(most, k b))``, with ``b = (target / start) ^ (1
    / levels)``. The last level is at the target exactly. ``most``: what there can be.
    """
    factor, density, found = (target / start) ** (1 / levels), start, []
    for _ in range(levels):
        density = max(target, min(most, density * factor))
        found.append(density)
    return [*found[:-1], target]


def annealing_epochs(epochs: int, *, levels: int, level_epochs: int | None) -> int:
    """Return the epochs of each level but the last one, which has all that is left; OptionError if that cannot be."""
    refuse(annealing_problems(epochs, levels=levels, level_epochs=level_epochs))
    return epochs // levels if level_epochs is None else level_epochs


def annealing_problems(epochs: int, *, levels: int, level_epochs: int | None, called: Names = str) -> Iterator[str]:
    """Yield why ``epochs`` cannot be divided into levels, of which the last one is the longest."""
    told = f"{called('levels')}={levels}"
    if levels > epochs:
        yield f"{told}: a level would have less than one of {epochs} epochs; choose {epochs} or less, or train longer"
    elif level_epochs is not None and levels * level_epochs > epochs:
        left = max(0, epochs - (levels - 1) * level_epochs)
        yield (
            f"{called('level_epochs')}={level_epochs}: of {epochs} epochs {told} leaves {left} for the last level, "
            f"less than for the others; choose {epochs // levels} or less, or fewer levels"
        )


def annealing_start_problems(start: float, target: float, called: Names = str) -> Iterator[str]:
    """Yield that the density could not fall from ``start`` to the ``target``."""
    if start <= target:
        yield (
            f"{called('start')}={start}: must be more than the density at the end, {target}, to which it falls; choose "
            "a larger one"
        )


def last_level_problems(steps: int, level_steps: int, levels: int) -> Iterator[str]:
    """Yield that training ends so early that the last level would be shorter than the others, of ``level_steps``."""
    if steps < levels * level_steps:
        yield (
            f"steps={steps}: would leave {max(0, steps - (levels - 1) * level_steps)} steps for the last level, less "
            f"than the {level_steps} of the others; {levels} levels need {levels * level_steps} or more"
        )
