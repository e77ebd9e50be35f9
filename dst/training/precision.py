"""Number formats of a training step: fp32, TF32, bf16 and fp16 with loss scaling."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dst.options import checked
from dst.training.options import PrecisionName

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLEST_SCALE = 2.0**-10
"""A loss scale below this has not been too high: gradients overflow at any scale."""


class Precision:
    """How forward passes are cast and losses scaled on ``device`` ("cpu" or "cuda")."""

    @checked
    def __init__(self, name: PrecisionName, device: str) -> None:
        self._device, self._dtype = device, _AUTOCAST.get(name)
        # Both switches, since PyTorch's defaults allow TF32 in convolutions but not in matrix products.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        self._scaler = torch.amp.GradScaler(device) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes and losses."""
        return torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)

    @property
    def scales_losses(self) -> bool:
        """Say whether losses are scaled, so that infinite gradients are normal now and then."""
        return self._scaler is not None

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call ``backward`` on."""
        return self._scaler.scale(loss) if self._scaler else loss

    def stepper(self, optimizer: Optimizer) -> Callable[[], Any] | None:
        """Return what takes an optimizer step: unscaling, and leaving it out where a scaled gradient overflowed.

        None where losses are not scaled, so that the optimizer steps by itself.
        """
        scaler = self._scaler
        if scaler is None:
            return None

        def step() -> None:
            scaler.step(optimizer)
            scaler.update()

        return step

    def halve_scale(self) -> None:
        """Try again with half the loss scale."""
        assert self._scaler is not None
        self._scaler.update(self._scaler.get_scale() / 2)

    def is_exhausted(self) -> bool:
        """Say whether the loss scale has vanished, which is what divergence looks like (waits for the device)."""
        return self._scaler is not None and self._scaler.get_scale() < _SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale and its counters."""
        return self._scaler.state_dict() if self._scaler else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._scaler:
            self._scaler.load_state_dict(state)
