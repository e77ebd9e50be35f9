"""From the real density of each layer to its exact number of active weights.

Densities are floats, and so are their products with layer sizes: a product that should be exactly half a weight may
round to either side. Of 5,994 densities that were tried, 18 give a total one weight off the exact half-to-even value.
The same holds for ``round(density * n)`` elsewhere in this room. It stays so, since exact fractions (``dst.fractions``)
would change masks of runs that are recorded.
"""

import math
from collections.abc import Sequence

from dst.options import checked
from dst.sparsity.distribution import Distribution, Shape
from dst.sparsity.options import FirstDensity


@checked
def allocate(distribution: Distribution, shapes: Sequence[Shape], density: FirstDensity | None) -> list[int]:
    """Return the exact number of active weights of every layer; without a ``density`` the distribution decides alone.

    The counts sum to ``round(density * maskable weights)``, or to less if the distribution falls short of that on
    purpose. Raises ValueError for an impossible density.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if density is None:
        return [round(d * n) for d, n in zip(distribution(shapes, 1.0), sizes, strict=True)]
    densities, wanted = distribution(shapes, density), density * sum(sizes)
    given = sum(d * n for d, n in zip(densities, sizes, strict=True))
    falls_short = not math.isclose(given, wanted, rel_tol=1e-9)
    total = round(given if falls_short else wanted)
    if total < len(sizes):
        least = _rounded_up(len(sizes) / sum(sizes))
        mend = (
            "this distribution falls short of its density, take another" if falls_short else f"the least is {least:g}"
        )
        raise ValueError(
            f"{total} active weights cannot be shared among {len(sizes)} layers of {sum(sizes)} weights in all: every "
            f"layer keeps at least one. The density is too small: {mend}"
        )
    return layer_counts(densities, sizes, total)


def _rounded_up(number: float) -> float:
    """Return a positive number with three digits, not below the number."""
    ones = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.ceil(number / ones) * ones


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
    """Share ``total`` in proportion to ``weights``, at most ``caps`` each; the others take what a cap cuts off.

    The shares sum to exactly ``total``, by largest remainder; ties go to the earlier. Raises ValueError if the caps
    leave no room. If the weights sum to zero, or to no finite number, all shares are equal.
    """
    if total > sum(caps):
        raise ValueError(f"{total} weights do not fit into {sum(caps)} free places")
    parts = _parts(total, weights, caps)
    shares = [int(part) for part in parts]
    open_ = [i for i, cap in enumerate(caps) if shares[i] < cap]
    for i in sorted(open_, key=lambda i: (shares[i] - parts[i], i))[: total - sum(shares)]:
        shares[i] += 1
    return shares


def level_counts(total: int, sizes: Sequence[int], caps: Sequence[int]) -> list[int]:
    """Share ``total`` so that all layers have the same density, at least one weight and at most ``caps`` each.

    A layer whose cap lies below that density keeps all that its cap allows.
    """
    parts = _parts(total, sizes, caps)
    return layer_counts([part / cap for part, cap in zip(parts, caps, strict=True)], caps, total)


def _parts(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[float]:
    """Return real parts of ``total`` in proportion to ``weights``, each at most its cap."""
    parts, rest, open_ = [float(cap) for cap in caps], total, list(range(len(caps)))
    while open_:
        whole = sum(weights[i] for i in open_)
        is_usable = whole > 0 and math.isfinite(whole)
        found = {i: rest * (weights[i] / whole if is_usable else 1 / len(open_)) for i in open_}
        full = [i for i in open_ if found[i] >= caps[i]]
        if not full:
            for i, part in found.items():
                parts[i] = part
            break
        rest -= sum(caps[i] for i in full)
        open_ = [i for i in open_ if found[i] < caps[i]]
    return parts
