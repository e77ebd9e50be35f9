"""Which way of computing a layer is faster here: measured on its own shape, precision and threads."""

import ctypes
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from dst.kernels.blocks import alike
from dst.kernels.product import Tiles, product, products
from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import UnitBlocks, block_product
from dst.kernels.units import units_of

BUDGET_S: Final = 0.2
"""Seconds for a layer. Slow ones take longer, since each candidate is timed once at least."""

MOST_ROUNDS: Final = 7

Action = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What a layer of some density takes, forward and backward, in milliseconds: with a mask and packed."""

    density: float
    masked_ms: float
    packed_ms: float

    @property
    def choice(self) -> Literal["masked", "packed"]:
        """The faster of both."""
        return "packed" if self.packed_ms < self.masked_ms else "masked"


def timed(
    library: ctypes.CDLL,
    shape: Shape,
    samples: int,
    mask: Tensor,
    *,
    autocast: torch.dtype | None = None,
    input_gradient: bool = True,
    budget_s: float = BUDGET_S,
) -> Timing:
    """Time both ways of computing a layer, on random inputs, with as many threads as torch has.

    ``mask``: boolean, in the shape of the layer's weight. ``autocast``: the type that it casts to, in which inputs and
    gradients of outputs come then; packed layers compute in float32 all the same. ``input_gradient``: whether inputs
    need gradients, which those of a network do not.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        inputs = partial(_inputs, shape, samples, mask.dim(), autocast or torch.float32)
        candidates = {
            "masked": _masked(shape, mask, *inputs(), autocast, input_gradient),
            "packed": _packed(library, shape, mask, *inputs(), input_gradient),
        }
        found = least(candidates, budget_s)
    density = int(mask.count_nonzero()) / mask.numel()
    return Timing(density, 1e3 * found["masked"], 1e3 * found["packed"])


def timed_units(
    shape: Shape,
    samples: int,
    mask: Tensor,
    *,
    autocast: torch.dtype | None = None,
    input_gradient: bool = True,
    budget_s: float = BUDGET_S,
) -> Timing:
    """Time both ways of computing a layer on a GPU, where its mask lies, which is of units (``units_of``)."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        inputs = _inputs(shape, samples, mask.dim(), autocast or torch.float32)
        x, dy = (tensor.to(mask.device) for tensor in inputs)
        units = units_of(mask)
        layer, values = UnitBlocks(units, shape, mask.device), torch.randn(len(units.places)).to(mask.device)
        candidates = {
            "masked": _masked(shape, mask, x, dy, autocast, input_gradient),
            "packed": _both_passes(lambda x, values: block_product(x, values, layer), x, values, dy, input_gradient),
        }
        found = least(candidates, budget_s, partial(_finished, mask.device))
    return Timing(len(units.places) / mask.numel(), 1e3 * found["masked"], 1e3 * found["packed"])


def _finished(device: torch.device) -> float:
    """Return the time at which a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def least(
    candidates: Mapping[str, Action], budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the least seconds of each candidate: they take turns until the budget is spent, after one round unseen."""
    started, found = clock(), dict.fromkeys(candidates, float("inf"))
    for action in candidates.values():
        action()
    for _ in range(MOST_ROUNDS):
        for name, action in candidates.items():
            before = clock()
            action()
            found[name] = min(found[name], clock() - before)
        if clock() - started >= budget_s:
            break
    return found


def _inputs(shape: Shape, samples: int, dimensions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs and gradients of outputs, channels-last."""
    if dimensions == 2:
        return torch.randn(samples, shape.channels, dtype=dtype), torch.randn(samples, shape.outs, dtype=dtype)
    sizes = (samples, shape.channels, shape.height, shape.width), (samples, shape.outs, *shape.out)
    x, dy = (torch.randn(size, dtype=dtype).to(memory_format=torch.channels_last) for size in sizes)
    return x, dy


def _masked(
    shape: Shape, mask: Tensor, x: Tensor, dy: Tensor, autocast: torch.dtype | None, input_gradient: bool
) -> Action:
    weight = torch.randn(mask.shape, dtype=torch.float32).to(mask.device).mul_(mask)
    if mask.dim() == 4:
        weight = weight.to(memory_format=torch.channels_last)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        context: AbstractContextManager[Any] = torch.autocast(
            x.device.type, dtype=autocast, enabled=autocast is not None
        )
        with context:
            if mask.dim() == 2:
                return F.linear(x, weight)
            return F.conv2d(x, weight, stride=shape.stride, padding=shape.padding)

    return _both_passes(forward, x, weight, dy, input_gradient)


def _packed(library: ctypes.CDLL, shape: Shape, mask: Tensor, x: Tensor, dy: Tensor, input_gradient: bool) -> Action:
    layer, pool = products(library, shape, mask, alike(mask)), Tiles()

    def forward(x: Tensor, values: Tensor) -> Tensor:
        return product(x.float(), values, layer, pool)

    return _both_passes(forward, x, torch.randn(len(layer.places), dtype=torch.float32), dy.float(), input_gradient)


def _both_passes(
    forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor, input_gradient: bool
) -> Action:
    x.requires_grad_(input_gradient)
    weight.requires_grad_()

    def action() -> None:
        x.grad = weight.grad = None
        torch.autograd.backward(forward(x, weight), dy)

    return action
