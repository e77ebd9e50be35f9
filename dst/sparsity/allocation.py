"""From real densities to exact integer counts a layer."""

import math
from collections.abc import Sequence

from dst.sparsity.distribution import Distribution, Shape


def allocate(distribution: Distribution, shapes: Sequence[Shape], density: float | None) -> list[int]:
    """Return the exact number of active weights of every layer; ``density`` None leaves it to the distribution alone.

    They sum to ``round(density * maskable weights)``, or to what a distribution that falls short of it on purpose
    gives. Raises ValueError for a density that cannot be had.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if density is None:
        return [round(d * n) for d, n in zip(distribution(shapes, 1.0), sizes, strict=True)]
    if not 0 < density <= 1:
        raise ValueError(f"density={density}: must lie in (0, 1]")
    densities, wanted = distribution(shapes, density), density * sum(sizes)
    given = sum(d * n for d, n in zip(densities, sizes, strict=True))
    return layer_counts(densities, sizes, round(wanted if math.isclose(given, wanted, rel_tol=1e-9) else given))


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


def share(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share ``total`` in proportion to ``weights``, at most ``caps`` each; what overflows goes to the others.

    Exact: the shares sum to ``total``. Largest remainders first, ties to the earlier. Raises ValueError if the caps
    leave no room. Weights that sum to zero count as equal.
    """
    if total > sum(caps):
        raise ValueError(f"{total} weights do not fit into {sum(caps)} free places")
    shares = [0] * len(caps)
    while (rest := total - sum(shares)) > 0:
        open_ = [i for i, cap in enumerate(caps) if shares[i] < cap]
        whole = sum(weights[i] for i in open_)
        parts = {i: rest * (weights[i] / whole if whole > 0 else 1 / len(open_)) for i in open_}
        grants = {i: min(int(part), caps[i] - shares[i]) for i, part in parts.items()}
        if not any(grants.values()):  # less than one for each: by largest remainder
            for i in sorted(open_, key=lambda i: (-parts[i], i))[:rest]:
                grants[i] = 1
        for i, grant in grants.items():
            shares[i] += grant
    return shares
