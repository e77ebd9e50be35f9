"""Weights that a threshold pulls to zero, and a threshold of each layer that is trained: STR."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dst.sparsity.weights.reparametrised import Edges, Reparametrization


class SoftThreshold(Reparametrization):
    """Soft threshold reparametrisation (Kusupati et al. 2020): ``sign(W) max(|W| - sigmoid(s), 0)``.

    A scalar ``s`` a layer is trained with the weights. It starts from ``threshold_init`` and has a weight decay of its
    own, ``threshold_decay``, which draws it towards zero and so raises the threshold. How sparse the network becomes is
    an outcome.
    """

    def __init__(self, edges: Edges, threshold_init: float, threshold_decay: float) -> None:
        self._edges = edges
        self._decay = threshold_decay
        self._layers = [_Soft(layer.weight, threshold_init) for layer in edges.layers]

    @property
    def parametrizations(self) -> Sequence[nn.Module]:
        """What computes the weights of each layer."""
        return self._layers

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights before the threshold."""
        return [layer.weight for layer in self._edges.layers]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The thresholds, with their weight decay."""
        return [{"params": [layer.s for layer in self._layers], "weight_decay": self._decay}]

    @torch.no_grad()
    def active(self) -> list[Tensor]:
        """Return the boolean masks of the active weights: those above the threshold of their layer."""
        return [soft(layer.weight) != 0 for soft, layer in zip(self._layers, self._edges.layers, strict=True)]

    @property
    def thresholds(self) -> list[float]:
        """The threshold of each layer, ``sigmoid(s)``; waits for the device."""
        found: list[float] = torch.stack([layer.s.detach() for layer in self._layers]).sigmoid().tolist()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return ``s`` by layer."""
        return {
            "s": {layer.name: soft.s.detach() for layer, soft in zip(self._edges.layers, self._layers, strict=True)}
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for layer, soft in zip(self._edges.layers, self._layers, strict=True):
            soft.s.copy_(state["s"][layer.name])


class _Soft(nn.Module):
    """The parametrisation of one layer."""

    def __init__(self, weight: Tensor, start: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.full((), start, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        found: Tensor = _Shrink.apply(weight, self.s)
        return found


class _Shrink(torch.autograd.Function):
    """``sign(W) max(|W| - sigmoid(s), 0)`` in few passes over the weights; autograd would take twice as many.

    There is no gradient at or below the threshold, so that weights which are zero off the edges stay so.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, s: Tensor) -> Tensor:
        threshold = s.sigmoid()
        shrunk = weight - weight.clamp(-threshold, threshold)
        ctx.save_for_backward(shrunk, s)
        return shrunk

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (shrunk, s) = gradients, ctx.saved_tensors
        threshold, sign = s.sigmoid(), shrunk.sign()
        pulls = gradient * sign
        return pulls * sign, -threshold * (1 - threshold) * pulls.sum()
