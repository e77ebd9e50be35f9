"""Weights that a threshold pulls to zero, and a threshold of each layer that is trained: STR."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dst.sparsity.weights.reparametrised import Edges, Reparametrization

_FEW, _MANY = 0.001, 0.1
"""What is hardly any of the weights, and the share that better values reach."""


class SoftThreshold(Reparametrization):
    """Soft threshold reparametrisation (Kusupati et al. 2020): ``sign(W) max(|W| - sigmoid(s), 0)``.

    A scalar ``s`` a layer is trained with the weights. It starts from ``threshold_init`` and has a weight decay of its
    own, ``threshold_decay``, which draws it towards zero and so raises the threshold. How sparse the network becomes is
    an outcome. ValueError if it starts above all weights of a layer, which nothing would train then.
    """

    def __init__(self, edges: Edges, threshold_init: float, threshold_decay: float) -> None:
        self._edges = edges
        self._start, self._decay = threshold_init, threshold_decay
        self._check_start()
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
    def _check_start(self) -> None:
        """Raise ValueError if no weight of a layer exceeds the threshold that it starts from."""
        largest = torch.stack([magnitudes.amax().double() for magnitudes in self._magnitudes() if len(magnitudes)])
        names = [layer.name for layer, mask in zip(self._edges.layers, self._edges.masks, strict=True) if mask.any()]
        least, name = min(zip(largest.tolist(), names, strict=True))
        threshold = _sigmoid(self._start)
        if least == 0:
            raise ValueError(
                f"layer {name}: its weights are all zero, and a soft threshold gives such weights no gradient; start "
                "from others, or leave the layer out of the scope (exclude)"
            )
        if threshold >= least:
            raise ValueError(
                f"threshold_init={self._start:g}: would be a threshold of {threshold:.4g}, but no weight of layer "
                f"{name} is larger within its mask (the largest is {least:.4g}), so that the layer would be zero, and "
                f"never be trained; choose {math.floor(100 * _logit(least) - 0.01) / 100:g} at most"
            )

    @torch.no_grad()
    def warning(self, left: Callable[[float], float]) -> str | None:
        """Return why hardly anything will be pruned if weight decay alone moves thresholds, and what would be better.

        That is if fewer than one in a thousand of the weights, as they are now, lie below.
        """
        found = self._magnitudes()
        together = torch.cat(found)
        end = self._start * left(self._decay)
        highest = max(self._start, end)
        below = int((together <= _sigmoid(highest)).sum())
        if below >= _FEW * len(together):
            return None
        aim, share = _logit(float(together.kthvalue(math.ceil(_MANY * len(together))).values)), left(self._decay)
        most = _logit(min(float(magnitudes.amax()) for magnitudes in found if len(magnitudes)) / 2)
        better = [f"threshold_init={_rounded_up(min(aim / share if aim < 0 < share else aim, most), 3):g}"]
        if aim < 0:
            better.insert(0, f"threshold_decay={_rounded_up(_reaching(left, aim / self._start), 2):g}")
        return (
            f"threshold_init={self._start:g}, threshold_decay={self._decay:g}: hardly anything would be pruned. Weight "
            f"decay alone takes thresholds from {_sigmoid(self._start):.3g} to {_sigmoid(end):.3g}, and {below:,} of "
            f"{len(together):,} weights are so small at first. It would reach a tenth with {' or '.join(better)}"
        )

    def _magnitudes(self) -> list[Tensor]:
        """Return the magnitudes of each layer's weights within its mask."""
        pairs = zip(self._edges.layers, self._edges.masks, strict=True)
        return [layer.weight.detach()[mask].abs() for layer, mask in pairs]

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


def _sigmoid(s: float) -> float:
    return 1 / (1 + math.exp(-s)) if s > 0 else math.exp(s) / (1 + math.exp(s))


def _logit(p: float) -> float:
    p = min(p, 1 - 1e-6)
    return math.log(p / (1 - p))


def _reaching(left: Callable[[float], float], share: float) -> float:
    """Return a weight decay that leaves a share, by bisection."""
    low, high = 0.0, 1e-6
    while left(high) > share:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > share else (low, middle)
    return high


def _rounded_up(value: float, digits: int) -> float:
    """Return the next larger number of so many digits."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits) if value else 1.0
    return float(f"{math.ceil(value / unit) * unit:.{digits}g}")


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
