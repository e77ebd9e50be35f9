"""Are two experiments told apart by their seeds? Differences with intervals, pure functions of numbers.

Pairs of one seed are compared within the seed (paired t); where too few seeds agree, the two samples are (Welch). Fewer
than ``LEAST`` seeds, or seeds without any spread, give no interval and no p-value, and ``note`` says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import mean
from typing import Final

LEAST: Final = 3
"""Seeds on each side below which nothing is tested."""

LEVEL: Final = 0.95
"""Of the intervals; what is told apart has a p-value below 1 - LEVEL."""

_EQUAL: Final = 1e-9
"""Figures closer than this, relative to their size, differ by rounding only."""


@dataclass(frozen=True)
class Difference:
    """The mean difference ``a - b`` of two experiments in the unit of their values, and how sure it is.

    ``n``: pairs if ``paired``, else the seeds of the smaller side; ``sizes``: the seeds of ``a`` and of ``b``.
    ``low`` and ``high`` bound the 95 % interval, ``p`` is two-sided; all are None where nothing can be tested.
    ``told``: whether the interval leaves out 0 (after ``correct``: and p, corrected by Holm, is below 5 %); None if
    untested. ``note`` says in words what the numbers do not.
    """

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    paired: bool = False
    told: bool | None = None
    note: str = ""
    sizes: tuple[int, int] = (0, 0)


def difference(a: Mapping[int, float], b: Mapping[int, float], resolution: float | None = None) -> Difference:
    """Compare two experiments, each as seed -> value: ``a - b``.

    Paired by seed if at least ``LEAST`` seeds agree, or if all of both do; else Welch's test of two samples.
    ``resolution``: what one sample of the test set changes a value by (see ``resolution``), for the note.
    """
    shared = sorted(a.keys() & b.keys())
    paired = len(shared) >= LEAST or (bool(shared) and a.keys() == b.keys())
    sizes = (len(a), len(b))
    if paired:
        gaps = [a[seed] - b[seed] for seed in shared]
        found = Difference(len(gaps), mean(gaps), paired=True, sizes=sizes, note=_alone(a.keys() ^ b.keys()))
    else:
        gap = mean(a.values()) - mean(b.values()) if a and b else None
        found = Difference(min(sizes), gap, sizes=sizes)
    if found.n < LEAST:
        return replace(found, note=f"n = {found.n}: not tested below {LEAST} seeds")
    samples = [gaps] if paired else [[*a.values()], [*b.values()]]
    if not any(_spreads(sample) for sample in samples):
        return replace(found, note=_without_spread(found, resolution))
    return _tested(found, *samples)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's step-down method, in their order; None stays None and is not counted."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def correct(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences of one table with p-values corrected by Holm; ``told`` follows these."""
    corrected = holm([one.p for one in differences])
    return [one if p is None else _corrected(one, p) for one, p in zip(differences, corrected, strict=True)]


def resolution(accuracies: Sequence[float]) -> Fraction | None:
    """Return the largest step 1/N of which all these shares are multiples: for correct over N samples, one sample.

    N is the size of the test set, or a divisor of it. None if there is no such N up to ten million.
    """
    size = 1
    for share in accuracies:
        nearest = Fraction(share).limit_denominator(100_000)
        if abs(float(nearest) - share) > 1e-12:
            return None
        size = math.lcm(size, nearest.denominator)
    return Fraction(1, size) if accuracies and 1 < size <= 10_000_000 else None


def _spreads(values: Sequence[float]) -> bool:
    return max(values) - min(values) > _EQUAL * max(1.0, *map(abs, values))


def _tested(found: Difference, *samples: Sequence[float]) -> Difference:
    from scipy import stats  # here: half a second of import that a table without seeds does not need

    test = stats.ttest_1samp(*samples, 0.0) if found.paired else stats.ttest_ind(*samples, equal_var=False)
    low, high = map(float, test.confidence_interval(LEVEL))
    told = not low <= 0 <= high
    note = "; ".join(filter(None, [found.note, "" if told else "within noise"]))
    return replace(found, low=low, high=high, p=float(test.pvalue), told=told, note=note)


def _corrected(one: Difference, p: float) -> Difference:
    told = bool(one.told) and p < 1 - LEVEL
    lost = "not told apart after Holm's correction" if one.told and not told else ""
    return replace(one, p=p, told=told, note="; ".join(filter(None, [one.note, lost])))


def _alone(seeds: set[int]) -> str:
    """Say which seeds have no partner."""
    if not seeds:
        return ""
    return f"without seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}, which one side lacks"


def _without_spread(found: Difference, step: float | None) -> str:
    same = "the same difference in each seed" if found.paired else "equal values in all seeds of each side"
    told = "" if step is None else f"; the test set resolves {step:.2g}"
    return "; ".join(filter(None, [found.note, f"{same}: no test{told}"]))
