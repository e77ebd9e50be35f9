"""How much a snapshot's gradients are trusted: a smoothed estimate of how they covary with those of the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Covariances:
    """Sample covariances of two series of numbers or vectors, which come in pairs; those of vectors are summed up.

    Sums are float64, on the device, and take one pass (Welford 1962): no pair is kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._means: list[Tensor] = []
        self._sums: Tensor

    @torch.no_grad()
    def add(self, first: Tensor, second: Tensor) -> None:
        """Add a pair of tensors of the same shape."""
        self.count += 1
        if self.count == 1:
            self._means = [first.clone(), second.clone()]
            self._sums = torch.zeros(3, dtype=torch.float64, device=first.device)
            return
        one, other = first - self._means[0], second - self._means[1]
        pairs = (one, one), (one, other), (other, other)
        products = torch.stack([(a * b).sum(dtype=torch.float64) for a, b in pairs])
        self._sums.add_(products, alpha=(self.count - 1) / self.count)
        for mean, apart in zip(self._means, (one, other), strict=True):
            mean.add_(apart, alpha=1 / self.count)

    def found(self) -> tuple[float, float, float]:
        """Return the variance of the first, the covariance, the variance of the second; waits for the device.

        Of two pairs at least: of one, or of none, all are nan.
        """
        if self.count < 2:
            return math.nan, math.nan, math.nan
        first, both, second = (self._sums / (self.count - 1)).tolist()
        return first, both, second


@dataclass
class Coefficient:
    """``gamma`` times an estimate that is smoothed over the periods.

    ``alpha``: the share of a new estimate; ``initial``: the smoothed estimate before the first; ``clip``: bring each
    estimate into [0, 1]; ``variance_floor``: leave those out that are made of less variance.
    """

    gamma: float
    alpha: float
    initial: float
    clip: bool
    variance_floor: float

    def __post_init__(self) -> None:
        self.smoothed: float = self.initial
        self.estimate: float | None = None
        """The one that the present period has begun with; None if it began without."""

    @property
    def value(self) -> float:
        """The coefficient of the present period."""
        return self.gamma * self.smoothed

    def learn(self, covariance: float, variance: float) -> None:
        """Take the regression of the gradients, or of what stands for them, on those of the snapshot as an estimate.

        It is left out, so that the coefficient stays, if there is too little variance or if it is not finite.
        """
        self.estimate = self._estimate(covariance, variance)
        if self.estimate is not None:
            self.smoothed = (1 - self.alpha) * self.smoothed + self.alpha * self.estimate

    def _estimate(self, covariance: float, variance: float) -> float | None:
        if variance < self.variance_floor or variance == 0:
            return None
        estimate = covariance / variance
        if not math.isfinite(estimate):
            return None
        return min(max(estimate, 0.0), 1.0) if self.clip else estimate

    def restart(self) -> None:
        """Forget all estimates."""
        self.smoothed, self.estimate = self.initial, None

    def state_dict(self) -> dict[str, Any]:
        """Return the smoothed estimate and the last one."""
        return {"smoothed": self.smoothed, "estimate": self.estimate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.smoothed, self.estimate = state["smoothed"], state["estimate"]
