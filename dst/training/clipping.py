"""Gradient clipping by value and by norm, and how much of it there was."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from dst.options import checked
from dst.training.options import ClipNorm, ClipValue


class Clipping:
    """Clip the gradients of a step just before the optimizer takes it: first by ``value``, then by their ``norm``.

    Inactive weights have a gradient of zero by then, so the norm is that of the gradients of all else: active weights,
    biases, normalisation layers. Steps whose gradients are not finite are vetoed elsewhere and do not count here.
    """

    @checked
    def __init__(
        self, parameters: Iterable[nn.Parameter], *, norm: ClipNorm | None = None, value: ClipValue | None = None
    ) -> None:
        self._parameters = list(parameters)
        self._norm, self._value = norm, value
        self._sums = torch.zeros(5, dtype=torch.float64, device=self._parameters[0].device)
        """Of the steps since the last figures: their number, norms, how many were clipped by norm; then, over all of
        their gradients, how many were not zero and how many were clipped by value."""

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the gradients in place, and remember how much, on their device and without waiting for it."""
        finite, nonzero, beyond, norm, is_clipped = self._sums.new_zeros(5).unbind()
        if self._value is not None:
            sizes = torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).abs_()
            finite = torch.isfinite(sizes.max())  # afterwards infinite ones could not be told
            nonzero, beyond = sizes.count_nonzero(), (sizes > self._value).sum()
            clip_grad_value_(self._parameters, self._value)
        if self._norm is not None:
            norm = clip_grad_norm_(self._parameters, self._norm)
            finite = finite if self._value is not None else torch.isfinite(norm)
            is_clipped = norm > self._norm
        seen = torch.stack([part.double() for part in (finite, norm, is_clipped, nonzero, beyond)])
        self._sums += torch.where(finite.bool(), seen, 0)

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes beside gradients: the sums."""
        return [self._sums]

    def figures(self) -> dict[str, float]:
        """Return what the steps since the last call came to; nothing if there was none. This waits for the device.

        With a norm: the mean norm before it was clipped, and the fraction of steps in which it was. With a value: the
        fraction of gradients, those that are zero aside, that were clipped.
        """
        steps, norms, clipped, nonzero, beyond = self._sums.tolist()
        self._sums.zero_()
        if steps == 0:
            return {}
        by_norm = {"train/gradient_norm": norms / steps, "train/clipped": clipped / steps}
        by_value = {"train/clipped_values": beyond / max(nonzero, 1)}
        return {**(by_norm if self._norm is not None else {}), **(by_value if self._value is not None else {})}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last figures."""
        return {"sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._sums.copy_(state["sums"])
