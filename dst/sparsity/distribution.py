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


def allocate(distribution: Distribution, shapes: Sequence[Shape], density: float | None) -> list[int]:
    """Return the exact number of active weights of every layer; ``density`` None leaves it to the distribution alone.

    They sum to ``round(density * maskable weights)``. Raises ValueError for a density that cannot be had.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if density is None:
        return [round(d * n) for d, n in zip(distribution(shapes, 1.0), sizes, strict=True)]
    if not 0 < density <= 1:
        raise ValueError(f"density={density}: must lie in (0, 1]")
    return layer_counts(distribution(shapes, density), sizes, round(density * sum(sizes)))


def layer_counts(densities: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Round real densities to exact counts that sum to ``total``, by largest remainder, each in [1, size].

    Ties go to the earlier layer. Raises ValueError if ``total`` cannot give every layer at least one weight.
    """
    if not len(sizes) <= total <= sum(sizes):
        raise ValueError(
            f"{total} active weights cannot be shared among {len(sizes)} layers of {sum(sizes)} weights in all: "
            "every layer keeps at least one. Choose another density"
        )
    quotas = [density * size for density, size in zip(densities, sizes, strict=True)]
    counts = [min(size, max(1, math.floor(quota))) for quota, size in zip(quotas, sizes, strict=True)]
    while (missing := total - sum(counts)) != 0:
        sign = 1 if missing > 0 else -1
        free = [i for i, n in enumerate(counts) if (n < sizes[i] if sign > 0 else n > 1)]
        free.sort(key=lambda i: (sign * (counts[i] - quotas[i]), i))
        for i in free[: abs(missing)]:
            counts[i] += sign
    return counts
