"""What a score may look at: one layer at one update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerView:
    """The tensors of one layer, all of the weight's shape. ``gradient`` is dense: inactive positions included."""

    weight: Tensor
    mask: Tensor
    explored: Tensor
    gradient: Tensor | None
    seed: int

    def uniform(self) -> Tensor:
        """Return numbers in [0, 1) derived from the run's seed, the update and the layer."""
        generator = torch.Generator(self.weight.device).manual_seed(self.seed)
        return torch.rand(self.weight.shape, generator=generator, device=self.weight.device)

    def dense_gradient(self) -> Tensor:
        """Return the gradient; RuntimeError if there is none (no backward pass before this step)."""
        if self.gradient is None:
            raise RuntimeError("growth by gradient needs a backward pass before the step")
        return self.gradient


Score = Callable[[LayerView], Tensor]
"""A pure function from a layer to one number a weight."""

_F = TypeVar("_F", bound=Callable[..., Any])


def needs_dense_gradient(score: _F) -> _F:
    """Mark a score that reads the dense gradient at updates, which training FLOPs must count."""
    score.needs_dense_gradient = True  # type: ignore[attr-defined]
    return score
