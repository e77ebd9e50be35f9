"""The first masks of a network: how many weights in each layer, and which."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dst.seeding import derive_seed
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import Distribution, NamedDistribution, uniform
from dst.sparsity.marks import Mark, marks_of
from dst.sparsity.options import Repair
from dst.sparsity.pattern import Pattern
from dst.sparsity.repair import Mended, mend
from dst.sparsity.saliency import Criterion, Probe
from dst.sparsity.scope import Layer
from dst.sparsity.select import pooled_top_k
from dst.sparsity.view import LayerView, Score


@dataclass
class Start:
    """The situation before the first step. ``patterns``: one a layer.

    ``counts``: active weights of each layer, empty until the distribution is allocated. ``forward_passes``: the cost of
    looking at data and at paths so far, in dense forward passes of one sample. ``mended``: what was repaired.
    """

    layers: Sequence[Layer]
    patterns: Sequence[Pattern]
    seed: int
    probe: Probe | None = None
    counts: Sequence[int] = ()
    forward_passes: int = 0
    mended: Mended | None = None
    _ranked: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def choose(self, score: Score) -> list[Tensor]:
        """Return the masks of the highest scores, a layer's count in each, inside the pattern."""
        return self.choose_by([score(self.view(i)) for i in range(len(self.layers))])

    def choose_by(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the masks of the highest scores, given one tensor a layer."""
        return [
            pattern.initial(score, count) if count < layer.size else torch.ones_like(score, dtype=torch.bool)
            for pattern, score, layer, count in zip(self.patterns, scores, self.layers, self.counts, strict=True)
        ]

    def rank(self, criterion: Criterion, keep: int | Sequence[int]) -> list[Tensor]:
        """Return the scores of a criterion; distribution and init share them if both ask for the same."""
        key = _identity(criterion)
        if key not in self._ranked:
            if "data" in marks_of(criterion) and self.probe is None:
                raise ValueError(
                    f"{key[0]} looks at data, but there is none: give Sparsifier a probe (model, batches, loss)"
                )
            found = criterion(self.probe, self.layers, keep)
            self.forward_passes += found.forward_passes
            self._ranked[key] = found.scores
        return self._ranked[key]

    def view(self, i: int) -> LayerView:
        """Return one layer as a score sees it; no weight is active yet."""
        weight = self.layers[i].weight
        blank = torch.zeros_like(weight, dtype=torch.bool)
        return LayerView(weight.detach(), blank, blank, weight.grad, derive_seed(self.seed, "init", i))


def _identity(criterion: Criterion) -> tuple[str, str]:
    """Return the name of a criterion and its options, defaults filled in."""
    function, given = getattr(criterion, "func", criterion), getattr(criterion, "keywords", {})
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return function.__name__, repr(sorted({**defaults, **given}.items()))


Init = Callable[[Start], list[Tensor]]
"""From the situation before the first step to the boolean mask of every layer."""


@dataclass(frozen=True)
class FirstParts:
    """The parts of a method that make its first masks, and what is mended then.

    ``pattern`` makes the pattern of one layer.
    """

    distribution: Distribution | NamedDistribution | Criterion | None
    init: Init
    pattern: Callable[[], Pattern]
    repair: Repair = field(default_factory=Repair)

    def patterns(self, layers: Sequence[Layer]) -> list[Pattern]:
        """Return a pattern for each layer."""
        patterns = [self.pattern() for _ in layers]
        if len(set(map(id, patterns))) < len(layers):
            raise ValueError("the pattern of one layer is that of another too: make a new one at each call")
        return patterns

    @property
    def own_counts(self) -> bool:
        """Say whether a part decides itself how many weights are kept, so that there is no density."""
        marks: frozenset[Mark] = frozenset().union(*map(marks_of, (self.distribution, self.init, self.pattern)))
        return "own_counts" in marks


def first_masks(start: Start, parts: FirstParts, density: float | None) -> list[Tensor]:
    """Return the mask of every layer; ValueError for a density or masks that are impossible."""
    start.counts = first_counts(start.layers, parts, density, partial(_ranked_counts, start))
    masks = parts.init(start)
    broken = []
    for layer, pattern, mask in zip(start.layers, start.patterns, masks, strict=True):
        if mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            raise ValueError(f"layer {layer.name}: an init gives boolean masks of the shape of the weights")
        if not (mask.all() or pattern.allows(mask)):
            broken.append(layer.name)
    if broken:
        raise ValueError(
            f"layer {', '.join(broken)}: the pattern does not allow the mask that this init gives; random, magnitude "
            "and saliency choose inside it, and the unstructured pattern allows every mask"
        )
    if not parts.repair.asked:
        return masks
    start.mended = mend(parts.repair, start.probe, start.layers, masks, start.seed)
    start.forward_passes += start.mended.forward_passes
    return start.mended.masks


def first_counts(
    layers: Sequence[Layer],
    parts: FirstParts,
    density: float | None,
    by_rank: Callable[[Criterion, float], list[int]] | None = None,
) -> list[int]:
    """Return how many weights each layer keeps at first, by the distribution and inside the pattern.

    Looks at shapes only, so the weights may be on the meta device. A criterion that ranks weights has to see them:
    ``by_rank(criterion, density)`` gives its counts. Without it all layers get the same density, which shows as well
    whether ``density`` is possible. An init with counts of its own may keep fewer weights than are returned.
    Raises ValueError for a density that is impossible, missing or not needed, and for a layer that the pattern refuses.
    """
    _check_density(parts, density)
    ranks = "ranks" in marks_of(parts.distribution)
    if parts.own_counts:
        counts = [layer.size for layer in layers]
    elif ranks and by_rank is not None:
        counts = by_rank(cast(Criterion, parts.distribution), cast(float, density))
    else:
        distribution = uniform if ranks else _by_shape(cast(Distribution, parts.distribution), layers)
        counts = allocate(distribution, [layer.weight.shape for layer in layers], density)
    if parts.own_counts:
        return _admissible(parts.patterns(layers), layers, counts)
    sparse = [i for i, layer in enumerate(layers) if counts[i] < layer.size]  # every pattern allows full layers
    some = [layers[i] for i in sparse]
    allowed = dict(zip(sparse, _admissible(parts.patterns(some), some, [counts[i] for i in sparse]), strict=True))
    return [allowed.get(i, count) for i, count in enumerate(counts)]


def _by_shape(distribution: Distribution | NamedDistribution, layers: Sequence[Layer]) -> Distribution:
    """Return a distribution as one that is given the shapes of these layers, and nothing else."""
    if "names" not in marks_of(distribution):
        return cast(Distribution, distribution)
    named = cast(NamedDistribution, distribution)
    return lambda shapes, density: named(
        {layer.name: shape for layer, shape in zip(layers, shapes, strict=True)}, density
    )


def _admissible(patterns: Sequence[Pattern], layers: Sequence[Layer], counts: Sequence[int]) -> list[int]:
    """Return the counts that the patterns allow, nearest to the given; ValueError names all layers that have none."""
    found, problems = [], {}
    for pattern, layer, count in zip(patterns, layers, counts, strict=True):
        try:
            found.append(pattern.admissible(layer.weight.shape, count))
        except ValueError as error:
            problems[layer.name] = str(error)
    if problems:
        raise ValueError("; ".join(f"layer {name}: {problem}" for name, problem in problems.items()))
    return found


def check_layout(layers: Sequence[Layer], **parts: Any) -> None:
    """Raise ValueError if a part works on output units and a layer does not have them in its first dimension."""
    transposed = [layer.name for layer in layers if layer.is_transposed]
    for kind, part in parts.items():
        if transposed and "units" in marks_of(part):
            raise ValueError(
                f"layer {transposed[0]} is a transposed convolution: the first dimension of its weights is that of the "
                f"inputs, but this {kind} goes by output units. Leave the layer out of the scope (exclude), or choose "
                f"another {kind}"
            )


def check_sharing(layers: Sequence[Layer], told: str) -> None:
    """Raise ValueError if a redistribution, as it is ``told`` to people, has no two layers to share weights among."""
    if len(layers) < 2:
        raise ValueError(f"{told} would be ignored: the model has a single sparse layer; leave it out")


def check_room(layers: Sequence[Layer], counts: Sequence[int]) -> None:
    """Raise ValueError if weights shall move but none is inactive; ``counts``: the active ones of each layer."""
    if all(count == layer.size for layer, count in zip(layers, counts, strict=True)):
        raise ValueError(
            "no layer has an inactive weight, so nothing could be grown; choose a smaller density, or leave out drop "
            "and grow"
        )


def _check_density(parts: FirstParts, density: float | None) -> None:
    if parts.own_counts and density is not None:
        raise ValueError(
            f"density={density} would be ignored: the distribution keeps all weights, or init or pattern have counts "
            "of their own; give density=None"
        )
    if not parts.own_counts and (density is None or parts.distribution is None):
        raise ValueError("density and distribution are missing: neither init nor pattern has its own counts; give both")


def _ranked_counts(start: Start, criterion: Criterion, density: float) -> list[int]:
    """Return how many of the most salient weights of the whole network lie in each layer, at least one."""
    total = round(density * sum(layer.size for layer in start.layers))
    scores = start.rank(criterion, total)
    masks = pooled_top_k(scores, total, [torch.ones_like(score, dtype=torch.bool) for score in scores])
    return [int(torch.count_nonzero(mask)) for mask in masks]
