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
"""Below this the loss scale is not the cause of an overflow: gradients overflow at any scale."""


class Precision:
    """Casts forward passes and scales losses on ``device`` ("cpu" or "cuda")."""

    @checked
    def __init__(self, name: PrecisionName, device: str) -> None:
        self._device = device
        self.dtype = _AUTOCAST.get(name)
        """What forward passes are cast to; None: nothing is cast."""
        # Both switches, since by default PyTorch allows TF32 in convolutions but not in matrix products.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        self._scaler = torch.amp.GradScaler(device) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes and losses."""
        return torch.autocast(self._device, dtype=self.dtype, enabled=self.dtype is not None)

    @property
    def scales_losses(self) -> bool:
        """Say whether losses are scaled; infinite gradients are then normal now and then."""
        return self._scaler is not None

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call ``backward`` on."""
        return self._scaler.scale(loss) if self._scaler else loss

    def step(self, optimizer: Optimizer, clip: Callable[[], None] | None = None) -> None:
        """Take an optimizer step; if losses are scaled, unscale first, and skip it if a gradient overflowed.

        ``clip`` clips the gradients, unscaled, just before.
        """
        if clip is not None:
            if self._scaler is not None:
                self._scaler.unscale_(optimizer)
            clip()
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes: the loss scale and its counter, from the first scaled loss on."""
        scaler = self._scaler
        found = [] if scaler is None else [scaler._scale, scaler._growth_tracker]
        return [tensor for tensor in found if tensor is not None]

    def halve_scale(self) -> None:
        """Halve the loss scale, for another try."""
        assert self._scaler is not None
        self._scaler.update(self._scaler.get_scale() / 2)

    def is_exhausted(self) -> bool:
        """Say whether the loss scale has vanished, a sign of divergence (waits for the device)."""
        return self._scaler is not None and self._scaler.get_scale() < _SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale and its counters."""
        return self._scaler.state_dict() if self._scaler else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._scaler:
            self._scaler.load_state_dict(state)
