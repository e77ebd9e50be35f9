"""Batch norm with what follows it, and dropout, each in one: fewer passes over activations, and more exact ones."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from dst.kernels.calls import at, long, threads
from dst.kernels.derivatives import refuse_second


def batch_norm(
    library: ctypes.CDLL,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    rectifies: bool,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``relu(norm(x) + added)`` by the statistics of the batch, with its mean and its (biased) variance.

    ``x``, ``added``: float32 on a CPU, channels second; they are laid channels-last if they are not. ``rectifies``:
    with ReLU.
    """
    y, mean, variance = _Norm.apply(x, weight, bias, added, library, eps, rectifies)
    return y, mean, variance


def dropout(library: ctypes.CDLL, x: Tensor, p: float, seed: int) -> Tensor:
    """Return ``x`` with each number dropped with probability ``p``, as a hash of its index and a 32-bit seed says."""
    y: Tensor = _Dropout.apply(x, library, p, seed)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        library: ctypes.CDLL,
        eps: float,
        rectifies: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, added = _lying(x), None if added is None else _lying(added)
        y, channels = torch.empty_like(x), x.shape[1]
        mean, inverse, variance, scale, shift = (torch.empty(channels, dtype=torch.float32) for _ in range(5))
        sizes = long(x.numel() // channels), long(channels)
        tensors = map(at, (weight, bias, mean, inverse, variance, scale, shift))
        _check(
            library.dst_norm_forward(
                *map(at, (x, added, y)), *sizes, *tensors, ctypes.c_double(eps), int(rectifies), threads()
            )
        )
        ctx.mark_non_differentiable(mean, variance)
        outcome = y if rectifies and added is not None else None  # else the backward pass computes its sign anew
        ctx.save_for_backward(x, outcome, weight, mean, inverse, scale, shift)
        ctx.library, ctx.rectifies = library, rectifies
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second("fused batch norm and dropout have")
        x, y, weight, mean, inverse, scale, shift = ctx.saved_tensors
        dy, dx = _lying(dy), torch.empty_like(x)
        dadded = torch.empty_like(x) if ctx.needs_input_grad[3] else None
        dweight, dbias, channels = torch.empty_like(weight), torch.empty_like(weight), x.shape[1]
        sizes = long(x.numel() // channels), long(channels)
        tensors = map(at, (weight, mean, inverse, scale, shift, dweight, dbias))
        _check(
            ctx.library.dst_norm_backward(
                *map(at, (x, y, dy, dx, dadded)), *sizes, *tensors, int(ctx.rectifies), threads()
            )
        )
        return dx, dweight, dbias, dadded, None, None, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, library: ctypes.CDLL, p: float, seed: int) -> Tensor:
        ctx.library, ctx.p, ctx.seed = library, p, seed
        return _dropped(x, library, p, seed)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second("fused batch norm and dropout have")
        return _dropped(dy, ctx.library, ctx.p, ctx.seed), None, None, None


def _dropped(x: Tensor, library: ctypes.CDLL, p: float, seed: int) -> Tensor:
    x = _lying(x)
    y = torch.empty_like(x)
    library.dst_dropout(at(x), at(y), long(x.numel()), ctypes.c_uint32(seed), ctypes.c_double(p), threads())
    return y


def _lying(x: Tensor) -> Tensor:
    """Return activations channels-last: index follows index in memory."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the sums of a batch norm")
