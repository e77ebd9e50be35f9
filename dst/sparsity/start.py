"""What the first masks are made of: the layers with their counts, and whatever an init may look at."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dst.seeding import derive_seed
from dst.sparsity.marks import marks_of
from dst.sparsity.pattern import Pattern
from dst.sparsity.saliency import Probe, Saliency
from dst.sparsity.scope import Layer
from dst.sparsity.view import LayerView, Score

Criterion = Callable[..., Saliency]
"""A function ``(probe, layers, keep, *, options) -> Saliency``, see ``dst.sparsity.saliency``."""


@dataclass
class Start:
    """The situation before the first step.

    ``counts``: active weights of each layer, once the distribution has said so. ``forward_passes``: what looking at
    data has cost so far, in dense forward passes of one sample.
    """

    layers: Sequence[Layer]
    pattern: Pattern
    seed: int
    probe: Probe | None = None
    counts: Sequence[int] = ()
    forward_passes: int = 0
    _ranked: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def choose(self, score: Score) -> list[Tensor]:
        """Return the masks of the highest scores, a layer's count in each, inside the pattern."""
        return self.choose_by([score(self.view(i)) for i in range(len(self.layers))])

    def choose_by(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the masks of the highest scores, given one tensor a layer."""
        return [
            self.pattern.initial(score, count) if count < layer.size else torch.ones_like(score, dtype=torch.bool)
            for score, layer, count in zip(scores, self.layers, self.counts, strict=True)
        ]

    def rank(self, criterion: Criterion, keep: int | Sequence[int]) -> list[Tensor]:
        """Return the scores of a criterion; those that the distribution had of it serve the init too."""
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
        """Return what a score may look at in one layer; nothing is active yet."""
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
