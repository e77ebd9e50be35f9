"""The non-finite guard: a bad loss or gradient never reaches the weights, and noticing it stalls no device."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class DivergedError(RuntimeError):
    """The loss or a gradient was infinite or not a number at ``step``; the weights were not touched."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"loss or gradient not finite at step {step}")


class Guard:
    """Veto optimizer steps by a flag on the device, and tell the host: at once on a CPU, a step later elsewhere."""

    def __init__(self, optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        self._pending: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def inspect(self, loss: Tensor, step: int) -> None:
        """Set the veto for ``step`` from the loss and all gradients (one pass over them)."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~(torch.isfinite(loss) & torch.isfinite(norm))).float()
        # Fused optimizers read this attribute (it is how GradScaler vetoes a step) and leave the weights alone if set.
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]
        self._pending.append((step, bad))

    def check(self, *, now: bool = False) -> None:
        """Raise DivergedError if a step was vetoed; ``now`` waits for the device to finish the last one."""
        delay = 0 if now or not self._pending or self._pending[-1][1].device.type == "cpu" else 1
        while len(self._pending) > delay:
            step, bad = self._pending.pop(0)
            if bad.item():
                raise DivergedError(step)
