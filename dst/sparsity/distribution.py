"""How much where: the density of each layer, and exact integer counts.

A distribution is a function ``(shapes, density) -> densities``, one real number in [0, 1] a layer, such that the
densities weighted by layer size average to ``density``. The criteria in ``dst.sparsity.saliency`` are the other kind:
they look at weights or data, and give each layer its share of the most salient weights of the network. A distribution
that is marked ``names`` has to know which layer is which, so it is given the shapes by name.

``classifier``, where it is an option, fixes the density of the last layer; the others share the rest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from dst.options import ASIDE, PATH, SHA256, Range, checked
from dst.sparsity.marks import marked
from dst.sparsity.masks_file import read_masks

Shape = Sequence[int]
Distribution = Callable[[Sequence[Shape], float], list[float]]
NamedDistribution = Callable[[Mapping[str, Shape], float], list[float]]
"""A distribution that is marked ``names``: from the shape of each layer, by its name."""

Classifier = Annotated[float, Range(0, 1, "(]"), "density of the last layer; the others share the rest"]
Clip = Annotated[bool, "limit layers that would exceed a density of 1 to 1; the total then falls short of the density"]


@marked("own_counts")
def dense(shapes: Sequence[Shape], density: float) -> list[float]:
    """Keep every weight."""
    return [1.0 for _ in shapes]


@checked
def uniform(shapes: Sequence[Shape], density: float, *, classifier: Classifier | None = None) -> list[float]:
    """Give every layer the same density."""
    return _with_fixed(_same, shapes, density, last=classifier)


@marked("fixes_first", "fixes_last")
@checked
def uniform_plus(
    shapes: Sequence[Shape],
    density: float,
    *,
    classifier: Annotated[float, Range(0, 1, "(]"), "density of the last layer, unless the network's is higher"] = 0.2,
) -> list[float]:
    """Keep the first layer dense and ``classifier`` or more of the last; share the rest evenly (Gale et al. 2019)."""
    return _with_fixed(_same, shapes, density, first=1.0, last=max(density, classifier))


@checked
def er(
    shapes: Sequence[Shape], density: float, *, classifier: Classifier | None = None, clip: Clip = False
) -> list[float]:
    """Erdos-Renyi (SET, Mocanu et al. 2018): density proportional to ``(inputs + outputs) / (inputs * outputs)``.

    ``clip``: layers that would exceed a density of 1 are cut off there, as in published codes. No other layer gets the
    surplus, so the total falls short of the density.
    """
    return _with_fixed(_clipped_er if clip else _er, shapes, density, last=classifier)


@checked
def erk(
    shapes: Sequence[Shape], density: float, *, classifier: Classifier | None = None, clip: Clip = False
) -> list[float]:
    """Erdos-Renyi-Kernel (RigL, Evci et al. 2020): as ``er``, with the kernel's dimensions in sum and product."""
    return _with_fixed(_clipped_erk if clip else _erk, shapes, density, last=classifier)


@checked
def balanced(
    shapes: Sequence[Shape], density: float, *, classifier: Classifier | None = None, clip: Clip = False
) -> list[float]:
    """Give every layer the same number of weights (Gadhikar et al. 2023); smaller layers are full, the others share.

    ``clip``: as in the published code, the number is that of the first sharing, all weights by all layers, and no other
    layer gets what does not fit into the small ones, so that the total falls short of the density.
    """
    return _with_fixed(_clipped_balanced if clip else _balanced, shapes, density, last=classifier)


@checked
def pyramidal(shapes: Sequence[Shape], density: float, *, classifier: Classifier | None = None) -> list[float]:
    """Let the density fall by the same factor from layer to layer: x, x^2, x^3, ... (Gadhikar et al. 2023).

    Layers come in the order in which the model's modules are registered, which in all of ``dst.models`` is that of a
    forward pass.
    """
    return _with_fixed(_pyramidal, shapes, density, last=classifier)


@marked("names")
@checked
def from_run(
    shapes: Mapping[str, Shape],
    density: float,
    *,
    path: Annotated[str, ASIDE, PATH, "the folder of the finished run whose layer densities are taken"],
    digest: Annotated[str | None, SHA256, "identifies the checkpoint; null: the newest in the folder"] = None,
) -> list[float]:
    """Take the layer densities of another run, scaled; what would exceed a density of 1 is shared out in proportion.

    They are those of the masks in its checkpoint, or in what ``Sparsifier.state_dict`` returned, in a torch file. A
    layer without any weight there counts as one with a single weight. Raises ValueError if the run has other layers, or
    another ``digest`` (SHA-256 in hex).
    """
    masks = read_masks(path, digest, shapes)
    found = [max(1, int(masks[name].count_nonzero())) / masks[name].numel() for name in shapes]
    return _scaled(found, list(shapes.values()), density)


def _same(shapes: Sequence[Shape], density: float) -> list[float]:
    return [density for _ in shapes]


def _er(shapes: Sequence[Shape], density: float) -> list[float]:
    return _scaled([_ratio(shape[:2]) for shape in shapes], shapes, density)


def _erk(shapes: Sequence[Shape], density: float) -> list[float]:
    return _scaled([_ratio(shape) for shape in shapes], shapes, density)


def _clipped_er(shapes: Sequence[Shape], density: float) -> list[float]:
    return _clipped([_ratio(shape[:2]) for shape in shapes], shapes, density)


def _clipped_erk(shapes: Sequence[Shape], density: float) -> list[float]:
    return _clipped([_ratio(shape) for shape in shapes], shapes, density)


def _balanced(shapes: Sequence[Shape], density: float) -> list[float]:
    return _scaled([1 / math.prod(shape) for shape in shapes], shapes, density)


def _clipped_balanced(shapes: Sequence[Shape], density: float) -> list[float]:
    return _clipped([1 / math.prod(shape) for shape in shapes], shapes, density)


def _pyramidal(shapes: Sequence[Shape], density: float) -> list[float]:
    """Return x, x^2, ... for the x at which they average to the density; the average rises from 0 to 1 with x."""
    sizes = [math.prod(shape) for shape in shapes]
    wanted, low, high = density * sum(sizes), 0.0, 1.0
    while low < (x := (low + high) / 2) < high:  # until no number lies between the two
        if sum(x**i * n for i, n in enumerate(sizes, start=1)) < wanted:
            low = x
        else:
            high = x
    return [high**i for i in range(1, len(sizes) + 1)]


def _ratio(shape: Shape) -> float:
    return sum(shape) / math.prod(shape)


def _with_fixed(
    rest: Distribution,
    shapes: Sequence[Shape],
    density: float,
    *,
    first: float | None = None,
    last: float | None = None,
) -> list[float]:
    """Fix the density of the first and the last layer, where given, and distribute the rest over the others."""
    fixed = {i: d for i, d in ((0, first), (len(shapes) - 1, last)) if d is not None}
    if not fixed:
        return rest(shapes, density)
    others = [i for i in range(len(shapes)) if i not in fixed]
    sizes = [math.prod(shape) for shape in shapes]
    total, room = sum(sizes), sum(sizes[i] for i in others)
    taken = sum(d * sizes[i] for i, d in fixed.items())
    left = density * total - taken
    if not 0 < left <= room:
        told = " and ".join(
            f"{100 * d:g}% of the {'last' if i else 'first'} layer's {sizes[i]:,}" for i, d in fixed.items()
        )
        mend = "a larger" if left <= 0 else "a smaller"
        raise ValueError(
            f"a density of {density:g} is {density * total:,.0f} of {total:,} weights, but this distribution keeps "
            f"{told}, that is {taken:,.0f}, and the other layers have {room:,}; choose {mend} density, or another "
            "distribution"
        )
    found = dict(zip(others, rest([shapes[i] for i in others], left / room), strict=True))
    return [fixed[i] if i in fixed else found[i] for i in range(len(shapes))]


def _clipped(raw: Sequence[float], shapes: Sequence[Shape], density: float) -> list[float]:
    """Scale ``raw`` to the wanted total density, as if a layer could exceed 1, and cut off what does."""
    sizes = [math.prod(shape) for shape in shapes]
    scale = density * sum(sizes) / sum(r * n for r, n in zip(raw, sizes, strict=True))
    return [min(1.0, scale * r) for r in raw]


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
