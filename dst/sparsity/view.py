"""What a score may look at: one layer at one update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerView:
    """The tensors of one layer, all of the weight's shape.

    ``gradient`` is dense for grow scores. Drop scores, which matter at active positions only, are taken after the
    optimizer step, if there is one, and then find it masked (and clipped, if the loop clips).
    ``momentum``: the moving average of dense gradients, kept only if a part of the method asks for it.
    """

    weight: Tensor
    mask: Tensor
    explored: Tensor
    gradient: Tensor | None
    seed: int
    momentum: Tensor | None = None

    def uniform(self) -> Tensor:
        """Return numbers in [0, 1) derived from the run's seed, the update and the layer."""
        generator = torch.Generator(self.weight.device).manual_seed(self.seed)
        return torch.rand(self.weight.shape, generator=generator, device=self.weight.device)

    def dense_gradient(self) -> Tensor:
        """Return the gradient; RuntimeError if there is none (no backward pass before this step)."""
        if self.gradient is None:
            raise RuntimeError(
                "a score by gradient needs a backward pass before the step, through every layer in scope; exclude "
                "layers that the model does not use"
            )
        return self.gradient

    def gradient_average(self) -> Tensor:
        """Return the moving average of dense gradients."""
        assert self.momentum is not None, "a part that reads the average must be marked 'momentum'"
        return self.momentum


Score = Callable[[LayerView], Tensor]
"""A pure function from a layer to one number a weight."""
