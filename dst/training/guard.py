"""The non-finite guard: bad losses and gradients do not reach the weights, nor bad weights a checkpoint or update."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.sparsity.weights.held import all_finite


class DivergedError(RuntimeError):
    """The loss, a gradient or a weight was infinite or not a number at ``step``."""

    def __init__(self, step: int, what: str = "loss or gradient") -> None:
        self.step = step
        super().__init__(f"{what} not finite at step {step}")


class Guard:
    """Veto optimizer steps by a flag on the device. The host learns it at once on a CPU, a step later elsewhere."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._parameters = list(model.parameters())
        self._weights = [*self._parameters, *(b for b in model.buffers() if b.is_floating_point())]
        self._pending: list[_Flag] = []

    @torch.no_grad()
    def judge(self, loss: Tensor, *, gradients_may_overflow: bool = False, apart: Sequence[Tensor] = ()) -> Tensor:
        """Set the veto from the loss and all gradients (one pass over them); return it, on their device.

        ``apart``: gradients that are no parameter's. ``gradients_may_overflow``: the loss is scaled and its scaler
        vetoes such steps, so only the loss counts here.
        """
        finite = torch.isfinite(loss)
        if not gradients_may_overflow:
            finite = finite & self.gradients_finite(apart)
            # Fused optimizers read this attribute and then leave the weights alone: GradScaler's way to veto a step.
            self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        return ~finite

    def note(self, step: int, vetoed: Tensor) -> None:
        """Let the host learn in time whether a step was vetoed."""
        self._pending.append(_Flag(step, vetoed))

    @torch.no_grad()
    def gradients_finite(self, apart: Sequence[Tensor] = ()) -> Tensor:
        """Return on the device whether all gradients are finite, also those that are no parameter's (``apart``)."""
        return all_finite([*(p.grad for p in self._parameters), *apart])

    def check(self, *, now: bool = False) -> None:
        """Raise DivergedError if a step was vetoed; ``now`` waits for the device to finish the last one."""
        delay = 0 if now or not self._pending or self._pending[-1].is_on_host else 1
        while len(self._pending) > delay:
            flag = self._pending.pop(0)
            if flag.is_set():
                raise DivergedError(flag.step)

    @torch.no_grad()
    def check_weights(self, step: int) -> None:
        """Raise DivergedError if a weight or a running statistic is not finite (waits for the device).

        A finite gradient times a large rate can overflow, so call this before the weights are saved or judged.
        """
        if not all_finite(self._weights):
            raise DivergedError(step, "a weight or running statistic")


class _Flag:
    """A device-side flag of a step that reaches the host without stalling the device."""

    def __init__(self, step: int, flag: Tensor) -> None:
        self.step = step
        self.is_on_host = flag.device.type == "cpu"
        self._value = flag
        self._copied: torch.cuda.Event | None = None
        if not self.is_on_host:
            # Reading the flag itself would wait for all work enqueued after it; its copy has an event of its own.
            self._value = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
            self._copied.record()

    def is_set(self) -> bool:
        """Return the flag; waits for it, but for nothing that came later."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._value)
