"""From real densities to exact integer counts a layer."""

import math
from collections.abc import Sequence

from dst.sparsity.distribution import Distribution, Shape


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
