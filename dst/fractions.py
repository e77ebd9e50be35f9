"""Steps and counts as fractions of whole numbers, exact: a float stands for the decimal number that is written for it.

``0.55 * 88000`` is 48400.00000000001 in binary floating point, and ``100 * (1 - 0.9)`` is below 10; counts and steps
that are derived from such products would be off by one.
"""

from collections.abc import Callable
from fractions import Fraction

Curve = Callable[[int], float]
"""A pure function from the step to a number: a learning rate, a density, a drop fraction."""


def exact(number: float) -> Fraction:
    """Return the shortest decimal number that reads back as this float, e.g. 11/20 for 0.55."""
    return Fraction(str(number))


def step_at(fraction: float, steps: int) -> int:
    """Return how many of ``steps`` have been taken at a fraction of training: the nearest whole number, half to even.

    ``fraction`` may be a number of epochs and ``steps`` those of an epoch.
    """
    return round(exact(fraction) * steps)
