"""How much where: the density of each layer, and exact integer counts.

A distribution is a function ``(shapes, density) -> densities``, one real number in [0, 1] a layer, such that the
densities weighted by layer size average to ``density``.
"""

import math
from collections.abc import Callable, Sequence

Shape = Sequence[int]
Distribution = Callable[[Sequence[Shape], float], list[float]]


def dense(shapes: Sequence[Shape], density: float) -> list[float]:
    """Keep every weight."""
    return [1.0 for _ in shapes]


def uniform(shapes: Sequence[Shape], density: float) -> list[float]:
    """Give every layer the same density."""
    return [density for _ in shapes]


def er(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdos-Renyi (SET, Mocanu et al. 2018): density proportional to ``(inputs + outputs) / (inputs * outputs)``."""
    return _scaled([sum(shape[:2]) / math.prod(shape[:2]) for shape in shapes], shapes, density)


def erk(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdos-Renyi-Kernel (RigL, Evci et al. 2020): as ``er``, with the kernel's dimensions in sum and product."""
    return _scaled([sum(shape) / math.prod(shape) for shape in shapes], shapes, density)


def _scaled(raw: Sequence[float], shapes: Sequence[Shape], density: float) -> list[float]:
    """Scale ``raw`` to the wanted total density; layers that would exceed 1 become dense and the rest is rescaled."""
    sizes = [math.prod(shape) for shape in shapes]
    full: set[int] = set()
    while len(full) < len(sizes):
        rest = [i for i in range(len(sizes)) if i not in full]
        budget = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = budget / sum(raw[i] * sizes[i] for i in rest)
        largest = max(raw[i] for i in rest)
        if scale * largest <= 1:
            return [1.0 if i in full else scale * raw[i] for i in range(len(sizes))]
        full |= {i for i in rest if raw[i] == largest}
    return [1.0] * len(sizes)
