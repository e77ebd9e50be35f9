"""One layer at one update, as a score sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dst.sparsity.select import on_host


@dataclass(frozen=True)
class LayerView:
    """The tensors of one layer, all of the weight's shape.

    ``gradient`` is dense for grow scores. Only those marked to read it get it, since training FLOPs count it; from
    others it ``is_withheld``. It may be given as a function, which makes it when it is read. Drop scores are taken
    after the optimizer step, if there is one, and then see it masked (and as the loop has corrected and clipped it);
    they matter at active positions only.
    ``momentum``: the moving average of dense gradients, kept only if a part of the method is marked to read it.
    ``count``: how many weights are active, if the host knows.
    """

    weight: Tensor
    mask: Tensor
    explored: Tensor
    gradient: Tensor | Callable[[], Tensor | None] | None
    seed: int
    momentum: Tensor | None = None
    is_withheld: bool = False
    count: int | None = None

    def uniform(self) -> Tensor:
        """Return numbers in [0, 1) derived from the run's seed, the update and the layer."""
        generator = torch.Generator(self.weight.device).manual_seed(self.seed)
        return torch.rand(self.weight.shape, generator=generator, device=self.weight.device)

    def active(self) -> Tensor:
        """Return the flat positions of the active weights, ascending; waits for a GPU only if the host has no count."""
        mask = self.mask.flatten()
        if self.count is None or on_host([mask]):
            return mask.nonzero().squeeze(1)
        return torch.nonzero_static(mask, size=self.count, fill_value=0).squeeze(1)

    def dense_gradient(self) -> Tensor:
        """Return the gradient; RuntimeError if there is none (no backward pass before this step) or it is withheld."""
        if self.is_withheld:
            raise RuntimeError(_unmarked("dense gradients", "dense_gradient"))
        gradient = self.gradient() if callable(self.gradient) else self.gradient
        if gradient is None:
            raise RuntimeError(
                "a score by gradient needs a backward pass before the step, through every layer in scope; exclude "
                "layers that the model does not use"
            )
        return gradient

    def gradient_average(self) -> Tensor:
        """Return the moving average of dense gradients; RuntimeError if none is kept."""
        if self.momentum is None:
            raise RuntimeError(_unmarked("the moving average of dense gradients", "momentum"))
        return self.momentum


def _unmarked(what: str, mark: str) -> str:
    return (
        f"a part of the method reads {what} but is not marked to do so, as training FLOPs need to know: put "
        f'@marked("{mark}") above the function that grows (from dst.sparsity.marks import marked)'
    )


Score = Callable[[LayerView], Tensor]
"""A pure function from a layer to one number a weight."""
